"""Conditional and range requests (RFC 9110, sections 13 and 14), evaluated for a representation. Either side."""

from __future__ import annotations

import calendar
import re
import time
from email.utils import parsedate_tz
from typing import NamedTuple

from tornado.httputil import HTTPHeaders

_ENTITY_TAG = re.compile(r'(?:W/)?"[\x21\x23-\x7e\x80-\xff]*"')
# More digits are no position in any file.
_RANGE = re.compile(r"bytes=[ \t]*([0-9]{0,18})-([0-9]{0,18})[ \t]*", re.IGNORECASE).fullmatch


class Part(NamedTuple):
    """What to answer: the status, and which bytes of the representation."""

    # 200, 206, 304, 412 or 416.
    status: int
    offset: int
    size: int


def part_to_send(headers: HTTPHeaders, size: int, etag: str, modified: float | None, *, has_ranges: bool) -> Part:
    """Evaluate the conditions and the range of a GET or HEAD for a representation that would be answered 200.

    Of several ranges in one request none counts, which section 14.2 allows: all is sent.

    :param size: of the representation, in bytes.
    :param etag: its entity tag with the quotes, ``W/`` included.
    :param modified: when it was modified, in seconds since 1970, if known.
    :param has_ranges: whether parts may be sent; to HEAD, for which ranges are not defined, none may.
    """
    seconds = None if modified is None else int(modified)
    whole = Part(200, 0, size)
    # The order is that of section 13.2.2.
    if "If-Match" in headers:
        if not _names(headers["If-Match"], etag, weakly=False):
            return Part(412, 0, 0)
    elif (limit := _date(headers, "If-Unmodified-Since")) is not None and seconds is not None and seconds > limit:
        return Part(412, 0, 0)
    if "If-None-Match" in headers:
        if _names(headers["If-None-Match"], etag, weakly=True):
            return Part(304, 0, 0)
    elif (limit := _date(headers, "If-Modified-Since")) is not None and seconds is not None and seconds <= limit:
        return Part(304, 0, 0)
    if not has_ranges or "Range" not in headers:
        return whole
    if "If-Range" in headers and not _is_same(headers, etag, seconds):
        return whole
    return _part(headers["Range"], size) or whole


def _part(text: str, size: int) -> Part | None:
    """The part that a ``Range`` asks for; None if it is to be ignored."""
    match = _RANGE(text)
    if match is None or match[1] == match[2] == "":
        return None
    if not match[1]:
        offset, end = max(0, size - int(match[2])), size
    else:
        offset, end = int(match[1]), min(size, int(match[2] or size) + 1)
        if match[2] and int(match[2]) < offset:
            return None
    return Part(206, offset, end - offset) if offset < size else Part(416, 0, 0)


def _names(field: str, etag: str, *, weakly: bool) -> bool:
    """Whether a list of entity tags has this one (section 8.8.3.2)."""
    if field.strip() == "*":
        return True
    if weakly:
        return etag.removeprefix("W/") in [each.removeprefix("W/") for each in _ENTITY_TAG.findall(field)]
    return not etag.startswith("W/") and etag in _ENTITY_TAG.findall(field)


def _is_same(headers: HTTPHeaders, etag: str, modified: int | None) -> bool:
    """Whether the client has parts of the very same bytes (section 13.1.5)."""
    validator = headers["If-Range"].strip()
    if validator.startswith(('"', "W/")):
        return validator == etag and not etag.startswith("W/")
    date = _date(headers, "If-Range")
    # What was modified within this second may be modified again within it (section 8.8.2.2).
    return date is not None and date == modified and time.time() - date >= 1


def _date(headers: HTTPHeaders, name: str) -> int | None:
    return seconds_of(headers[name]) if name in headers else None


def seconds_of(date: str) -> int | None:
    """The seconds since 1970 of a date in one of HTTP's formats (RFC 9110, section 5.6.7), or None."""
    try:
        fields = parsedate_tz(date)
        return None if fields is None else calendar.timegm(fields[:6]) - (fields[9] or 0)
    except (ValueError, OverflowError, IndexError):
        return None
