"""Validates the answers of peers: a malformed one must break neither this process nor the page."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

Check = Callable[[Any], bool]

# Far more than any frontend sends.
LONGEST_TEXT = 20_000
LARGEST_NUMBER = 1e15
MOST_ITEMS = 2_000
MOST_PROCESSES = 500


class MalformedAnswer(ValueError):
    """An answer that no frontend would give; the message says why."""


def parse(body: bytes) -> dict[str, Any]:
    """Parse a JSON object; raises `MalformedAnswer`."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        raise MalformedAnswer("its answer is not JSON") from None
    if not isinstance(document, dict):
        raise MalformedAnswer("its answer is not that of a frontend")
    return document


def parse_processes(body: bytes) -> list[dict[str, Any]]:
    """Parse a list of processes, as in ``/local/processes.json``; raises `MalformedAnswer`."""
    processes: Any = parse(body).get("processes")
    if not _list_of(_object(_PROCESS), MOST_PROCESSES)(processes):
        raise MalformedAnswer("its answer is not that of a frontend")
    found: list[dict[str, Any]] = processes
    return found


def parse_stopped(body: bytes) -> int:
    """Parse the number of requests that a frontend has stopped; raises `MalformedAnswer`."""
    stopped: Any = parse(body).get("stopped")
    if not _count(stopped):
        raise MalformedAnswer("its answer is not that of a frontend")
    return int(stopped)


def _text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= LONGEST_TEXT


def _number(value: Any) -> bool:
    # Python's parser accepts infinity, NaN and numbers of any size.
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    return abs(value) <= LARGEST_NUMBER and math.isfinite(value)


def _count(value: Any) -> bool:
    return _number(value) and isinstance(value, int) and value >= 0


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


def _scalar(value: Any) -> bool:
    return value is None or _flag(value) or _number(value) or _text(value)


def _or_none(check: Check) -> Check:
    return lambda value: value is None or check(value)


def _list_of(check: Check, most: int = MOST_ITEMS) -> Check:
    return lambda value: isinstance(value, list) and len(value) <= most and all(map(check, value))


def _by_number(check: Check, digits: int) -> Check:
    """An object whose names are whole numbers with at most this many digits."""
    return lambda value: (
        isinstance(value, dict)
        and len(value) <= MOST_ITEMS
        and all(re.fullmatch(rf"[0-9]{{1,{digits}}}", name) and check(part) for name, part in value.items())
    )


def _counts(value: Any) -> bool:
    return isinstance(value, dict) and len(value) <= MOST_ITEMS and all(map(_count, value.values()))


def _object(fields: Mapping[str, Check]) -> Check:
    """An object with these fields; a later version may add others, if their values are scalars."""
    return lambda value: (
        isinstance(value, dict)
        and fields.keys() <= value.keys()
        and len(value) <= MOST_ITEMS
        and all(fields.get(name, _scalar)(part) for name, part in value.items())
    )


_LANE = {"name": _text, **dict.fromkeys(("threads", "busy", "queued", "queue"), _count)}
_ROW = {
    **dict.fromkeys(("key", "id", "state", "client", "method", "url", "lane"), _text),
    **dict.fromkeys(("received", "since", "waiting", "running", "database"), _number),
    **dict.fromkeys(("sent", "statements"), _count),
    "time_left": _or_none(_number),
    "sql": _or_none(_text),
    "sql_running": _or_none(_number),
    "connection": _or_none(_count),
}
_BAR = {
    **dict.fromkeys(("key", "id", "client", "method", "url", "lane", "ending"), _text),
    **dict.fromkeys(("received", "total", "waiting", "running", "database"), _number),
    **dict.fromkeys(("status", "statements"), _count),
}
_PROCESS = {
    **dict.fromkeys(("key", "admin"), _text),
    **dict.fromkeys(("now", "started"), _number),
    "pid": _count,
    "addresses": _list_of(_text),
    "draining": _flag,
    "lanes": _list_of(_object(_LANE)),
    "counts": _counts,
    "requests": _list_of(_object(_ROW)),
    "finished": _list_of(_object(_BAR)),
    "slots": _by_number(_object({"endings": _counts, "bins": _by_number(_count, 3)}), 12),
}
