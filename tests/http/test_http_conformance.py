"""What clients may send, row by row, and what must come of it: answers, the application's calls, the connection."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from wsgiref.validate import validator

import pytest

from tests.http_cases import ROWS, Row
from tests.http_cases.row import get, get_1_0
from tests.http_cases.runner import Recorder, check, play
from tests.support.inprocess import BridgeThread, wait_until

REFUSED = [row for row in ROWS if row.refusal and not row.half_closes]
# Rows for limits are long, and where the limit is reached does not depend on every single byte.
SHORT = [row for row in ROWS if len(row.sent) < 1000]

# The methods of WebDAV are news to the validator.
pytestmark = pytest.mark.filterwarnings("ignore:Unknown REQUEST_METHOD")


def named(rows: list[Row]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("row", rows, ids=[f"{row.name} ({row.section})" for row in rows])


@pytest.fixture(scope="module")
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture(scope="module")
def server(recorder: Recorder) -> Iterator[BridgeThread]:
    with BridgeThread(validator(recorder), threads=1) as server:
        yield server


@named(ROWS)
def test_in_one_segment(row: Row, server: BridgeThread, recorder: Recorder) -> None:
    check(row, play(row, server, recorder))


@named(SHORT)
def test_byte_by_byte(row: Row, server: BridgeThread, recorder: Recorder) -> None:
    check(row, play(row, server, recorder, cuts=range(1, len(row.sent))))


@named(REFUSED)
def test_nothing_behind_a_refusal_is_served(row: Row, server: BridgeThread, recorder: Recorder) -> None:
    check(row, play(row, server, recorder, behind=get(path=b"/smuggled") * 2))


@pytest.mark.parametrize("request_", [get(b"Connection: close"), get_1_0(), get_1_0(path=b"/stream")])
def test_a_response_that_ends_its_connection_is_counted_as_answered(
    request_: bytes, server: BridgeThread, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "tornado.access")
    server.exchange(request_.replace(b"\r\n\r\n", b"\r\nUser-Agent: counted\r\n\r\n"))

    def lines() -> list[str]:
        # Those of the tests before may come only now.
        return [message for message in caplog.messages if '"counted"' in message]

    wait_until(lambda: bool(lines()), "the access log has a line")
    assert [" 200 " in line and "ending=done" in line for line in lines()] == [True]
