"""Validates the answers of other frontends: a malformed one must break neither this process nor the page."""

from __future__ import annotations

import json
import re
from typing import Any

# Far more than any frontend sends.
LONGEST_TEXT = 20_000
LARGEST_NUMBER = 1e15
MOST_ITEMS = 2_000

_BIN = re.compile("[0-9]{1,3}")
_SLOT = re.compile("[0-9]{1,12}")
ANY_NAME = re.compile(r"(?s:.*)")
_COUNTS = {ANY_NAME: int}
_LANE = {
    "name": str,
    **dict.fromkeys(("threads", "busy", "queued", "queue"), int),
    "kept?": int,
    "short_below?": float,
    "hosts?": [{"name": str, "running": int, "up": bool}],
}
_REQUEST = {
    **dict.fromkeys(("key", "id", "client", "method", "url", "lane"), str),
    **dict.fromkeys(("received", "waiting", "running", "database"), float),
    "statements": int,
    "upstream?": str,
}
_RUNNING = {
    "state": str,
    "since": float,
    "sent": int,
    "time_left": (None, float),
    "sql": (None, str),
    "sql_running": (None, float),
    "connection": (None, int),
    "class?": str,
    "expected?": (None, float),
    "outgrown?": bool,
    "starts_in?": (None, float),
}
_PROCESS = {
    **dict.fromkeys(("key", "admin"), str),
    **dict.fromkeys(("host?", "machine?"), str),
    **dict.fromkeys(("now", "started"), float),
    "pid": int,
    "addresses": [str],
    "draining": bool,
    "lanes": [_LANE],
    "counts": _COUNTS,
    "requests": [{**_REQUEST, **_RUNNING}],
    "finished": [{**_REQUEST, "ending": str, "total": float, "status": int}],
    "slots": {_SLOT: {"endings": _COUNTS, "bins": {_BIN: int}}},
}
PROCESSES = {"processes": [_PROCESS]}
_KIND = {
    **dict.fromkeys(("method", "path", "parameters", "class"), str),
    **dict.fromkeys(("median", "p95", "mean", "database"), float),
    "count": int,
}
TABLES = {"tables": [{"key": str, "rows": [_KIND]}]}
STOPPED = {"stopped": int}
READINESS = {"ready": bool, "draining": bool, "findings": [str], "weight?": int}


class FrontendError(Exception):
    """A frontend gave no answer, or a wrong one; the message gives the reason."""


def parse(body: bytes, shape: dict[Any, Any]) -> dict[str, Any]:
    """Parse an answer in JSON; raises `FrontendError` if it does not have this shape (see `has_shape`)."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        raise FrontendError("its answer is not JSON") from None
    if not isinstance(document, dict) or not has_shape(document, shape):
        raise FrontendError("its answer is not that of a frontend")
    return document


def has_shape(value: Any, shape: Any) -> bool:
    """Whether a parsed JSON value has this shape, and nothing in it is too long or too large.

    Shapes are: ``bool``, ``str``, ``float`` (any number), ``int`` (a whole number, not negative), ``None``; a tuple of
    alternatives; a list with the shape of all items; a dict of fields, where a later version may add other fields that
    are scalars, and an earlier one leave out those whose name has a question mark; a dict with one pattern, for fields
    with any such names.
    """
    if isinstance(shape, tuple):
        return any(has_shape(value, each) for each in shape)
    if isinstance(shape, list):
        return isinstance(value, list) and len(value) <= MOST_ITEMS and all(has_shape(item, shape[0]) for item in value)
    if isinstance(shape, dict):
        if not isinstance(value, dict) or len(value) > MOST_ITEMS:
            return False
        [pattern, *_] = shape
        if isinstance(pattern, re.Pattern):
            return all(pattern.fullmatch(name) and has_shape(part, shape[pattern]) for name, part in value.items())
        return all(name in value for name in shape if not name.endswith("?")) and all(
            has_shape(part, shape.get(name, shape.get(f"{name}?", (None, bool, float, str))))
            for name, part in value.items()
        )
    if shape in (int, float):
        # Python's parser accepts infinity, NaN and numbers of any size.
        is_number = isinstance(value, (int, shape)) and not isinstance(value, bool)
        return is_number and abs(value) <= LARGEST_NUMBER and (shape is float or value >= 0)
    if shape is None:
        return value is None
    return isinstance(value, shape) and (shape is bool or len(value) <= LONGEST_TEXT)
