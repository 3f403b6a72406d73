"""Conditional and range requests, as RFC 9110 (sections 13 and 14) has them."""

from __future__ import annotations

import time
from email.utils import formatdate

import pytest
from tornado.httputil import HTTPHeaders

from threadbridge.http.preconditions import Part, part_to_send, seconds_of

SIZE = 1000
ETAG = '"abc"'
MODIFIED = 1_700_000_000.75
AT = formatdate(MODIFIED, usegmt=True)
BEFORE, AFTER = formatdate(MODIFIED - 5, usegmt=True), formatdate(MODIFIED + 5, usegmt=True)
WHOLE, UNCHANGED, FAILED = Part(200, 0, SIZE), Part(304, 0, 0), Part(412, 0, 0)
RANGE = {"Range": "bytes=10-19"}
PART = Part(206, 10, 10)


def part(headers: dict[str, str], etag: str = ETAG, size: int = SIZE, *, has_ranges: bool = True) -> Part:
    return part_to_send(HTTPHeaders(headers), size, etag, MODIFIED, has_ranges=has_ranges)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, WHOLE),
        ({"If-None-Match": ETAG}, UNCHANGED),
        ({"If-None-Match": f"W/{ETAG}"}, UNCHANGED),
        ({"If-None-Match": f'"x", {ETAG}'}, UNCHANGED),
        ({"If-None-Match": "*"}, UNCHANGED),
        ({"If-None-Match": '"x"'}, WHOLE),
        ({"If-None-Match": "abc"}, WHOLE),
        ({"If-Modified-Since": AT}, UNCHANGED),
        ({"If-Modified-Since": AFTER}, UNCHANGED),
        ({"If-Modified-Since": BEFORE}, WHOLE),
        ({"If-Modified-Since": "yesterday"}, WHOLE),
        # The entity tag counts, and the date does not (section 13.1.3).
        ({"If-None-Match": '"x"', "If-Modified-Since": AFTER}, WHOLE),
        ({"If-Match": ETAG}, WHOLE),
        ({"If-Match": "*"}, WHOLE),
        ({"If-Match": '"x"'}, FAILED),
        ({"If-Match": f"W/{ETAG}"}, FAILED),
        ({"If-Unmodified-Since": AT}, WHOLE),
        ({"If-Unmodified-Since": BEFORE}, FAILED),
        ({"If-Match": ETAG, "If-Unmodified-Since": BEFORE}, WHOLE),
        ({"If-Match": '"x"', "If-None-Match": ETAG}, FAILED),
        ({**RANGE, "If-None-Match": ETAG}, UNCHANGED),
        ({**RANGE, "If-Range": ETAG}, PART),
        ({**RANGE, "If-Range": '"x"'}, WHOLE),
        ({**RANGE, "If-Range": f"W/{ETAG}"}, WHOLE),
        ({**RANGE, "If-Range": AT}, PART),
        ({**RANGE, "If-Range": AFTER}, WHOLE),
        ({**RANGE, "If-Range": "nonsense"}, WHOLE),
    ],
)
def test_conditions(headers: dict[str, str], expected: Part) -> None:
    assert part(headers) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("bytes=0-0", Part(206, 0, 1)),
        ("bytes=0-", Part(206, 0, SIZE)),
        ("bytes=990-", Part(206, 990, 10)),
        ("bytes=990-5000", Part(206, 990, 10)),
        ("bytes=-10", Part(206, 990, 10)),
        ("bytes=-5000", Part(206, 0, SIZE)),
        ("BYTES=10-19", PART),
        ("bytes=999-999", Part(206, 999, 1)),
        ("bytes=1000-", Part(416, 0, 0)),
        ("bytes=1000-2000", Part(416, 0, 0)),
        ("bytes=-0", Part(416, 0, 0)),
        ("bytes=20-10", WHOLE),
        ("bytes=-", WHOLE),
        ("bytes=a-b", WHOLE),
        ("bytes=1-2,5-6", WHOLE),
        ("seconds=1-2", WHOLE),
        (f"bytes={'9' * 40}-", WHOLE),
    ],
)
def test_ranges(text: str, expected: Part) -> None:
    assert part({"Range": text}) == expected
    assert part({"Range": text}, has_ranges=False) == WHOLE


def test_an_empty_representation_has_no_ranges() -> None:
    assert part({"Range": "bytes=0-"}, size=0) == Part(416, 0, 0)
    assert part({"Range": "bytes=-5"}, size=0) == Part(416, 0, 0)


def test_weak_tags_do_not_vouch_for_bytes() -> None:
    assert part({"If-None-Match": ETAG}, etag=f"W/{ETAG}") == UNCHANGED
    assert part({"If-Match": f"W/{ETAG}"}, etag=f"W/{ETAG}") == FAILED
    assert part({**RANGE, "If-Range": f"W/{ETAG}"}, etag=f"W/{ETAG}") == WHOLE


def test_a_date_of_this_second_does_not_vouch_for_bytes() -> None:
    now = time.time() + 1000
    headers = HTTPHeaders({**RANGE, "If-Range": formatdate(now, usegmt=True)})
    assert part_to_send(headers, SIZE, ETAG, now, has_ranges=True) == WHOLE


def test_dates_in_all_formats() -> None:
    for text in ("Sun, 06 Nov 1994 08:49:37 GMT", "Sunday, 06-Nov-94 08:49:37 GMT", "Sun Nov  6 08:49:37 1994"):
        assert seconds_of(text) == 784111777
    for text in ("", "now", "Sun, 99 Nov 1994 99:99:99 GMT +", "0"):
        assert seconds_of(text) is None or isinstance(seconds_of(text), int)
