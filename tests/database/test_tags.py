"""Comments in statements."""

from __future__ import annotations

import pytest

from threadbridge.database.tags import followed_by, preceded_by, tagged

COMMENT = " /*traceparent='00-1-2-01'*/"


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("SELECT 1", f"SELECT 1{COMMENT}"),
        ("SELECT 1 ; \r\n", f"SELECT 1 {COMMENT};"),
        ("SELECT 'à'", f"SELECT 'à'{COMMENT}"),
        # In latin-1, the last byte of this name is a space that does not break.
        ("SELECT à", f"SELECT à{COMMENT}"),
        # sqlcommenter's specification: not a second one.
        ("SELECT 1 /*traceparent='00-3-4-01'*/", "SELECT 1 /*traceparent='00-3-4-01'*/"),
        ("SELECT /*+ NO_MERGE(a) */ 1", "SELECT /*+ NO_MERGE(a) */ 1"),
        ("SELECT 1 -- why", "SELECT 1 -- why"),
    ],
)
def test_the_comment_at_the_end(sql: str, expected: str) -> None:
    assert followed_by(COMMENT, sql) == expected
    assert followed_by(COMMENT, sql.encode()) == followed_by(COMMENT, bytearray(sql.encode())) == expected.encode()


def test_objects_of_a_driver_stay_as_they_are() -> None:
    thing = object()
    assert preceded_by("/* a */ ", thing) is tagged(thing) is thing
    # No request runs in this thread.
    assert tagged("SELECT 1") == "SELECT 1"
