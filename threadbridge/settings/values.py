"""The kinds of value that settings have: what each looks like as text, in a config file and in Python."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from threadbridge.crossing.lanes import Lane

_UNITS = {"": 1, "k": 1024, "m": 1024**2, "g": 1024**3}
_TRUE = ("true", "t", "yes", "on", "1")
_FALSE = ("false", "f", "no", "off", "0")


class ImportPath(str):
    """The import path of an object, ``MODULE:ATTRIBUTE``, as options, the environment and config files give it."""


@dataclass(frozen=True)
class Kind:
    """A kind of value.

    :param expected: what it must look like, to stand behind "expected".
    :param metavar: stands for the value, with its unit if it has one, in the help and the documentation.
    :param accepts: whether a Python value is of this kind.
    :param read: the Python value of a text; raises ``ValueError``.
    :param show: the text of a Python value.
    :param in_file: the types by which a config file may give it.
    :param several: whether it is a list, which may be given piece by piece.
    :param words: its texts, if it has only some.
    """

    expected: str
    metavar: str
    accepts: Callable[[Any], bool]
    read: Callable[[str], object] = str
    show: Callable[[Any], str] = str
    in_file: tuple[type, ...] = (str,)
    several: bool = False
    words: tuple[str, ...] = ()


def number(lowest: int, highest: int | None = None) -> Kind:
    """A whole number within bounds, which belong to it."""
    return Kind(
        f"a number of at least {lowest}" if highest is None else f"a number from {lowest} to {highest}",
        "N",
        lambda value: type(value) is int and lowest <= value <= (math.inf if highest is None else highest),
        read=int,
        in_file=(int,),
    )


def seconds(lowest: float | None = None) -> Kind:
    """A time in seconds, more than 0 or at least ``lowest``."""
    return Kind(
        "a number of seconds greater than 0" if lowest is None else f"a number of seconds, {lowest:g} or more",
        "SECONDS",
        lambda value: (
            type(value) in (int, float) and (value > 0 if lowest is None else value >= lowest) and value < math.inf
        ),
        read=float,
        show=lambda value: f"{value:g}",
        in_file=(int, float),
    )


def size(lowest: int = 1) -> Kind:
    """A number of bytes; as text in k, M or G too."""
    return Kind(
        f"a number of bytes, {lowest} or more, such as 64k, 1M or 1G",
        "BYTES",
        lambda value: type(value) is int and value >= lowest,
        read=_read_size,
        show=_show_size,
        in_file=(int, str),
    )


def choice(*words: str) -> Kind:
    """One of some words, in upper or lower case."""
    return Kind(
        f"one of {', '.join(words)}", "|".join(words), lambda value: value in words, read=str.lower, words=words
    )


def _read_flag(text: str) -> bool:
    if text.lower() in _TRUE:
        return True
    if text.lower() in _FALSE:
        return False
    raise ValueError


def _read_size(text: str) -> int:
    match = re.fullmatch(r"([0-9]+)([kmg]?)", text.lower())
    if match is None:
        raise ValueError
    return int(match[1]) * _UNITS[match[2]]


def _show_size(size: int) -> str:
    for unit in ("g", "m", "k"):
        if size and size % _UNITS[unit] == 0:
            return f"{size // _UNITS[unit]}{unit if unit == 'k' else unit.upper()}"
    return str(size)


def _read_list(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _show_lanes(lanes: list[Lane | str]) -> str:
    return ",".join(lane if isinstance(lane, str) else f"{lane.name}:{lane.pattern}:{lane.threads}" for lane in lanes)


def _show_object(value: object) -> str:
    return value if isinstance(value, ImportPath) else getattr(value, "__name__", type(value).__name__)


TEXT = Kind("a text", "TEXT", lambda value: isinstance(value, str))
PATH = Kind("a path", "PATH", lambda value: isinstance(value, str) and value != "")
FLAG = Kind(
    "true or false",
    "true|false",
    lambda value: isinstance(value, bool),
    read=_read_flag,
    show=lambda value: str(value).lower(),
    in_file=(bool,),
    words=("true", "false"),
)
OCTAL = Kind(
    "octal permissions such as 660",
    "MODE",
    lambda value: type(value) is int and 0 <= value <= 0o777,
    read=lambda text: int(text, 8),
    show=lambda mode: f"{mode:o}",
)
SEVERAL = Kind(
    "a list of texts",
    "A,B,...",
    lambda value: isinstance(value, (list, tuple)) and all(isinstance(part, str) for part in value),
    read=_read_list,
    show=",".join,
    several=True,
)
LANES = Kind(
    "a list of lanes",
    "NAME:PATTERN:THREADS",
    lambda value: isinstance(value, (list, tuple)) and all(isinstance(lane, (Lane, str)) for lane in value),
    read=_read_list,
    show=_show_lanes,
    several=True,
)
POOL = Kind("a PooledDB", "MODULE:ATTRIBUTE", lambda value: True, read=ImportPath, show=_show_object)
FUNCTION = Kind(
    "a function",
    "MODULE:ATTRIBUTE",
    lambda value: callable(value) or isinstance(value, ImportPath),
    read=ImportPath,
    show=_show_object,
)
