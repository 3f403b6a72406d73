"""Removes the values from SQL statements, for readers who may see the statements but not the data."""

from __future__ import annotations

import re

# Matched from left to right. Text that matches none of these contains no values, and stays.
_TOKEN = re.compile(
    r"""
      (?P<comment> /\*.*?(?:\*/|\Z) | --[^\n]* )
    | (?P<name>    `[^`]*`? | [^\W\d][\w$]*(?!['\w$]) )
    | (?P<string>  \w*'(?:[^'\\]|\\.|'')*(?:'|\\?\Z) | "(?:[^"\\]|\\.|"")*(?:"|\\?\Z) )
    | (?P<number>  \d[\w.]*(?:(?<=[eE])[+-]\d+)? | \.\d\w* )
    | (?P<unclear> \# | \$\w*\$ )
    """,
    re.VERBOSE | re.DOTALL,
)
_STANDARD_STRING = re.compile(r"""\w*'(?:[^']|'')*(?:'|\Z) | "(?:[^"]|"")*(?:"|\Z)""", re.VERBOSE)


def masked(sql: str) -> str:
    """The statement with ``?`` in place of each string and number, and without comments.

    Databases disagree about backslashes in strings, and about ``#`` and ``$...$``. Where readings begin to differ, the
    rest of the statement becomes one ``?``. Text in double quotes may be a name; it is masked too.
    """
    parts = []
    end = 0
    for token in _TOKEN.finditer(sql):
        parts.append(sql[end : token.start()])
        end = token.end()
        if token.lastgroup == "name":
            parts.append(token[0])
        elif token.lastgroup == "comment":
            parts.append(" ")
        else:
            parts.append("?")
            if token.lastgroup == "unclear" or (token.lastgroup == "string" and _has_two_readings(token)):
                return "".join(parts)
    return "".join(parts) + sql[end:]


def _has_two_readings(string: re.Match[str]) -> bool:
    standard = _STANDARD_STRING.match(string.string, string.start())
    return standard is None or standard.end() != string.end()
