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
    r"""|(?P<bare>(?:\\.|\$\{[^}]*\}|[^\s;{}])+)|(?P<mark>[;{}])""",
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
class _Block:
    """The directives between two braces, or those of the first file; ``passes`` are the lines with ``proxy_pass``."""

    timeout: ReadTimeout | None = None
    passes: list[str] = field(default_factory=list)
    blocks: list[_Block] = field(default_factory=list)


def read_timeouts(path: str) -> list[ReadTimeout]:
    """The timeouts of all ``proxy_pass`` in this file and those it includes; raises ``OSError``, `NginxConfigError`."""
    top = _Block()
    _read(Path(path), Path(path).parent, (), top)
    found = list(dict.fromkeys(_timeouts(top, None)))
    if not found:
        raise NginxConfigError(f"{path} has no proxy_pass, in itself or in what it includes")
    return found


def _timeouts(block: _Block, inherited: ReadTimeout | None) -> Iterator[ReadTimeout]:
    timeout = block.timeout or inherited
    for location in block.passes:
        yield timeout or ReadTimeout(DEFAULT_TIMEOUT, f"nginx's default, at {location}")
    for inner in block.blocks:
        yield from _timeouts(inner, timeout)


def _read(file: Path, directory: Path, including: tuple[Path, ...], top: _Block) -> None:
    """Add the directives of a file, and of those that it includes, to a block; ``directory`` is the first file's."""
    including = (*including, file.resolve())
    blocks = [top]
    words: list[str] = []
    line, location = 1, ""
    for token in _TOKEN.finditer(file.read_text(encoding="utf-8", errors="replace")):
        word = next((part for part in token.group("double", "single", "bare") if part is not None), None)
        if word is not None:
            location = location if words else f"{file}:{line}"
            words.append(word)
        elif token["mark"] == "}":
            if words or len(blocks) == 1:
                raise NginxConfigError(f"{file}:{line}: a '}}' without a '{{' before it")
            blocks.pop()
        elif token["mark"]:
            if not words:
                raise NginxConfigError(f"{file}:{line}: a '{token['mark']}' without a directive")
            if token["mark"] == "{":
                blocks.append(_Block())
                blocks[-2].blocks.append(blocks[-1])
            elif words[0] == "proxy_pass":
                blocks[-1].passes.append(location)
            elif words[0] == "proxy_read_timeout":
                blocks[-1].timeout = ReadTimeout(_seconds(" ".join(words[1:]), location), location)
            elif words[0] == "include" and len(words) == 2:
                # Also if a file elsewhere includes it. An absolute path stays as it is.
                pattern = str(directory / words[1])
                for path in sorted(glob.glob(pattern)) if glob.has_magic(pattern) else [pattern]:
                    if Path(path).resolve() in including:
                        raise NginxConfigError(f"{location} includes {path}, which includes this file")
                    _read(Path(path), directory, including, blocks[-1])
            words = []
        line += token[0].count("\n")
    if words or len(blocks) > 1:
        raise NginxConfigError(f"{file}: ends in the middle of a directive or of a block")


def _seconds(text: str, location: str) -> float:
    if not re.fullmatch(r"(\d+(ms|[smhdwMy])? ?)+", text):
        raise NginxConfigError(f"{location}: {text!r} is not a length of time")
    return sum(int(number) * _UNITS[unit or "s"] for number, unit in re.findall(r"(\d+)(ms|[smhdwMy])?", text))
