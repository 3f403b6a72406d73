"""Reads from nginx's configuration how long nginx waits for a response."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

DEFAULT_TIMEOUT = 60.0

# White space, a comment, a quoted word, a bare word (in which ${...} may stand), or punctuation.
_TOKEN = re.compile(
    r"""\s+|\#[^\n]*|"(?P<double>(?:\\.|[^"\\])*)"|'(?P<single>(?:\\.|[^'\\])*)'"""
    r"""|(?P<bare>(?:\\.|\$\{[^}]*\}|[^\s;{}\\])+)|(?P<mark>[;{}])""",
    re.DOTALL,
)
_UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400, "M": 30 * 86400, "y": 365 * 86400}


class NginxConfigError(ValueError):
    """The file is not an nginx configuration, or has no ``proxy_pass``."""


class ReadTimeout(NamedTuple):
    """A ``proxy_read_timeout``: its seconds, and the line that sets it or, for the default, the ``proxy_pass``."""

    seconds: float
    location: str


@dataclass
class _Directive:
    words: list[str]
    location: str
    block: list[_Directive] = field(default_factory=list)


def read_timeouts(path: str) -> list[ReadTimeout]:
    """The timeouts of the ``proxy_pass`` directives in this file and in the files that it includes.

    Raises ``OSError`` if a file cannot be read, and `NginxConfigError`.
    """
    file = Path(path)
    directives = _expand(_directives(file), file.parent, (file.resolve(),))
    found = list(dict.fromkeys(_applying(directives, None)))
    if not found:
        raise NginxConfigError(f"{path} has no proxy_pass, in itself or in what it includes")
    return found


def _applying(block: list[_Directive], inherited: ReadTimeout | None) -> Iterator[ReadTimeout]:
    for directive in block:
        if directive.words[0] == "proxy_read_timeout":
            inherited = ReadTimeout(_seconds(directive), directive.location)
    for directive in block:
        if directive.words[0] == "proxy_pass":
            yield inherited or ReadTimeout(DEFAULT_TIMEOUT, f"nginx's default, at {directive.location}")
        yield from _applying(directive.block, inherited)


def _seconds(directive: _Directive) -> float:
    text = " ".join(directive.words[1:])
    if not re.fullmatch(r"(\d+(ms|[smhdwMy])? ?)+", text):
        raise NginxConfigError(f"{directive.location}: {text!r} is not a length of time")
    return sum(int(number) * _UNITS[unit or "s"] for number, unit in re.findall(r"(\d+)(ms|[smhdwMy])?", text))


def _expand(directives: list[_Directive], root: Path, within: tuple[Path, ...]) -> list[_Directive]:
    """The directives of a file, in which those of the included files replace each ``include``.

    :param root: the directory of the first file; nginx resolves relative paths from there.
    :param within: the file and the files that include it, none of which may be included again.
    """
    expanded = []
    for directive in directives:
        if directive.words[0] == "include" and len(directive.words) == 2:
            for file in _included(directive, root):
                if file.resolve() in within:
                    raise NginxConfigError(f"{directive.location} includes {file}, which includes this file")
                expanded += _expand(_directives(file), root, (*within, file.resolve()))
        else:
            directive.block = _expand(directive.block, root, within)
            expanded.append(directive)
    return expanded


def _included(directive: _Directive, root: Path) -> list[Path]:
    # An absolute path stays as it is.
    path = str(root / directive.words[1])
    return [Path(name) for name in sorted(glob.glob(path))] if glob.has_magic(path) else [Path(path)]


def _directives(file: Path) -> list[_Directive]:
    text = file.read_text(encoding="utf-8", errors="replace")
    blocks: list[list[_Directive]] = [[]]
    words: list[str] = []
    position = begin = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise NginxConfigError(f"{_location(file, text, position)}: this syntax is not understood")
        mark = match["mark"]
        word = next((part for part in match.group("double", "single", "bare") if part is not None), None)
        if word is not None:
            begin = begin if words else position
            words.append(word)
        elif mark == "}":
            if words or len(blocks) == 1:
                raise NginxConfigError(f"{_location(file, text, position)}: a '}}' without a '{{' before it")
            blocks.pop()
        elif mark:
            if not words:
                raise NginxConfigError(f"{_location(file, text, position)}: a '{mark}' without a directive")
            directive = _Directive(words, _location(file, text, begin))
            blocks[-1].append(directive)
            words = []
            if mark == "{":
                blocks.append(directive.block)
        position = match.end()
    if words or len(blocks) > 1:
        raise NginxConfigError(f"{file}: ends in the middle of a directive or of a block")
    return blocks[0]


def _location(file: Path, text: str, position: int) -> str:
    return f"{file}:{text.count(chr(10), 0, position) + 1}"
