"""The kinds of value that settings have: what each looks like as text, in a config file and in Python."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

from threadbridge.crossing.lanes import Lane
from threadbridge.http.url_prefix import is_prefix

_UNITS = {"G": 1024**3, "M": 1024**2, "k": 1024, "": 1}
# What may stand for a pool instead of an import path.
POOL_WORDS = ("django", "none", "MySQLdb", "pymysql")
# NAME:PATTERN:THREADS:MODULE:ATTRIBUTE, or NAME:PATTERN:URL,URL.
_LANE = re.compile(r"(?!https?://)([^:]*):(.*?):(?:([0-9]+)(?::(\w[\w.]*:\w[\w.]*))?|(https?://.+))").fullmatch
_FLAGS = dict.fromkeys(("true", "t", "yes", "on", "1"), True) | dict.fromkeys(("false", "f", "no", "off", "0"), False)


class SettingError(ValueError):
    """A setting that cannot be used; the message names it and says what is expected."""


class ImportPath(str):
    """The import path of an object, ``MODULE:ATTRIBUTE``, as options, the environment and config files give it."""


@dataclass(frozen=True)
class Kind:
    """A kind of value.

    :param expected: what it must look like, to follow the word "expected".
    :param metavar: stands for the value in the help and the documentation: its unit, or its words separated by ``|``.
    :param read: turns a text into a value; raises ``ValueError`` or ``KeyError``.
    :param in_file: the types that a config file may use for it.
    :param is_list: whether its items may be given one by one.
    """

    expected: str
    metavar: str
    accepts: Callable[[Any], bool]
    read: Callable[[str], object] = str
    show: Callable[[Any], str] = str
    in_file: tuple[type, ...] = (str,)
    is_list: bool = False


def list_of(expected: str, metavar: str, accepts_item: Callable[[Any], bool]) -> Kind:
    """A list of items, of which a text has several by commas."""
    return Kind(
        expected,
        metavar,
        lambda value: isinstance(value, (list, tuple)) and all(map(accepts_item, value)),
        read=_read_list,
        show=",".join,
        is_list=True,
    )


def number(lowest: int, highest: float = math.inf) -> Kind:
    """A whole number from ``lowest`` to ``highest``."""
    return Kind(
        f"a number of at least {lowest}" if highest == math.inf else f"a number from {lowest} to {highest}",
        "N",
        lambda value: type(value) is int and lowest <= value <= highest,
        read=int,
        in_file=(int,),
    )


def seconds(lowest: float | None = None) -> Kind:
    """A time in seconds, greater than 0 or at least ``lowest``."""
    return Kind(
        "a number of seconds greater than 0" if lowest is None else f"a number of seconds, {lowest:g} or more",
        "SECONDS",
        lambda value: (
            type(value) in (int, float) and value < math.inf and (value > 0 if lowest is None else value >= lowest)
        ),
        read=float,
        show="{:g}".format,
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


def _read_size(text: str) -> int:
    match = re.fullmatch(r"([0-9]+)([kMG]?)", text.upper().replace("K", "k"))
    if match is None:
        raise ValueError
    return int(match[1]) * _UNITS[match[2]]


def _show_size(size: int) -> str:
    unit = next(unit for unit, factor in _UNITS.items() if size % factor == 0) if size else ""
    return f"{size // _UNITS[unit]}{unit}"


def choice(*words: str) -> Kind:
    """One of some words; as text in upper or lower case."""
    return Kind(f"one of {', '.join(words)}", "|".join(words), lambda value: value in words, read=str.lower)


def _read_list(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _read_lanes(text: str) -> list[Lane]:
    lanes = []
    # The commas between the URLs of a lane do not separate lanes.
    for part in re.split(r",(?!\s*https?://)", text):
        if not part.strip():
            continue
        match = _LANE(part.strip())
        if match is None:
            raise ValueError
        try:
            if match[3] is not None:
                pool = None if match[4] is None else _read_pool(match[4])
                lanes.append(Lane(match[1], match[2], threads=int(match[3]), pool=pool))
            else:
                lanes.append(Lane(match[1], match[2], upstream=_read_list(match[5])))
        except ValueError as error:
            raise SettingError(str(error)) from None
    return lanes


def _show_lane(lane: Lane) -> str:
    pool = "" if lane.pool is None else f":{_show_object(lane.pool)}"
    return f"{lane.name}:{lane.pattern}:{','.join(map(str, lane.upstream)) or lane.threads}{pool}"


def _read_pools(text: str) -> list[str]:
    parts = _read_list(text)
    if not parts or ("none" in parts and len(parts) > 1):
        raise ValueError
    return [*map(_read_pool, parts)]


def _read_pool(text: str) -> str:
    """The text itself if it stands for a pool, and otherwise the import path of one."""
    return text if text in POOL_WORDS or text.startswith("django:") else ImportPath(text)


def _show_pools(value: object) -> str:
    return ",".join(map(_show_object, value)) if isinstance(value, (list, tuple)) else _show_object(value)


def _show_object(value: object) -> str:
    return value if isinstance(value, str) else getattr(value, "__name__", type(value).__name__)


_EXPECTED_ADDRESS = "HOST:PORT, [IPV6]:PORT, :PORT for all interfaces, unix:PATH, or fd:N for an inherited socket"


_EXPECTED_MOUNT = "/PREFIX/:DIRECTORY, such as /static/:shop/static"


class Address(NamedTuple):
    """Where to listen: a TCP port of a host ("" for all interfaces), a Unix socket's path, or a file descriptor."""

    host: str = ""
    port: int = 0
    path: str | None = None
    descriptor: int | None = None


def address_of(text: str) -> Address:
    """The address that a text such as ``127.0.0.1:8000`` or ``unix:/run/shop.sock`` names; raises ``ValueError``."""
    if match := re.fullmatch(r"unix:(?://)?(.+)", text, re.DOTALL):
        return Address(path=match[1])
    if match := re.fullmatch(r"fd:(?://)?([0-9]{1,9})", text):
        return Address(descriptor=int(match[1]))
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+(?:%[\w.-]+)?)\]|([\w.-]*)):([0-9]{1,5})", text)
    if match is None or int(match[3]) > 65535:
        raise ValueError(f"{text!r}: expected {_EXPECTED_ADDRESS}")
    return Address(match[1] or match[2] or "", int(match[3]))


def _is_address(text: object) -> bool:
    try:
        return isinstance(text, str) and bool(address_of(text))
    except ValueError:
        return False


class Mount(NamedTuple):
    """A directory whose files have paths that begin with a prefix, such as ``/static/``, as ``PATH_INFO`` has it."""

    prefix: str
    directory: str


def mount_of(text: str) -> Mount:
    """The mount that a text such as ``/static/:shop/static`` names; raises ``ValueError``."""
    prefix, _, directory = text.partition(":")
    if not (len(prefix) > 1 and prefix.endswith("/") and is_prefix(prefix[:-1]) and directory):
        raise ValueError(f"{text!r}: expected {_EXPECTED_MOUNT}")
    return Mount(prefix, directory)


def _is_mount(text: object) -> bool:
    try:
        return isinstance(text, str) and bool(mount_of(text))
    except ValueError:
        return False


TEXT = Kind("a text", "TEXT", lambda value: isinstance(value, str))
PATH = Kind("a path", "PATH", lambda value: isinstance(value, str) and value != "")
FLAG = Kind(
    "true or false",
    "true|false",
    lambda value: isinstance(value, bool),
    read=lambda text: _FLAGS[text.lower()],
    show=lambda value: str(value).lower(),
    in_file=(bool,),
)
PERMISSIONS = Kind(
    "octal permissions such as 660",
    "MODE",
    lambda value: type(value) is int and 0 <= value <= 0o777,
    read=lambda text: int(text, 8),
    show="{:o}".format,
)
TEXTS = list_of("a list of texts", "A,B,...", lambda part: isinstance(part, str))
URL_PREFIX = Kind(
    "a path without a slash at its end, such as /shop",
    "PATH",
    lambda value: isinstance(value, str) and is_prefix(value),
)
ADDRESSES = list_of(_EXPECTED_ADDRESS, "ADDRESS", _is_address)
MOUNTS = list_of(_EXPECTED_MOUNT, "/PREFIX/:DIRECTORY", _is_mount)
DIRECTORIES = list_of("a list of directories", "DIRECTORY", lambda part: isinstance(part, str) and part != "")
LANES = Kind(
    "NAME:PATTERN:THREADS, such as static:/static/*:2, or NAME:PATTERN:THREADS:MODULE:ATTRIBUTE with a replica's pool, "
    "or NAME:PATTERN:URL,URL; in Python a list of Lane objects",
    "NAME:PATTERN:THREADS[:MODULE:ATTRIBUTE]|NAME:PATTERN:URL,URL",
    lambda value: isinstance(value, (list, tuple)) and all(isinstance(lane, Lane) for lane in value),
    read=_read_lanes,
    show=lambda lanes: ",".join(map(_show_lane, lanes)),
    is_list=True,
)
POOL = Kind(
    "MODULE:ATTRIBUTE of a pool, such as shop:db.pool; or django, django:ALIAS, MySQLdb or pymysql; or only none",
    "MODULE:ATTRIBUTE",
    lambda value: True,
    read=_read_pools,
    show=_show_pools,
    is_list=True,
)
FUNCTION = Kind(
    "a function",
    "MODULE:ATTRIBUTE",
    lambda value: callable(value) or isinstance(value, ImportPath),
    read=ImportPath,
    show=_show_object,
)

# Types with their kinds of value.
Seconds = Annotated[float, seconds()]
Bytes = Annotated[int, size()]
OptionalPath = Annotated[str | None, PATH]
