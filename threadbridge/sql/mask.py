"""The text of SQL statements without the values in it, for people who may see the statements but not the data."""

from __future__ import annotations

import re

# What comes first in the text is taken first; all that is not named here has no values and stays.
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

    Databases do not agree on what a backslash means in a string, nor on ``#`` and ``$...$`` at all: from where two
    readings differ, the rest of the statement is one ``?``. In double quotes there may be a name; it is masked too.
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
