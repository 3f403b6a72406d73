"""Records of requests: who gets them, when, and what happens to one reader when another fails."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Sequence
from types import SimpleNamespace
from wsgiref.types import StartResponse, WSGIEnvironment

import pytest

from tests.support.inprocess import BridgeThread, wait_until
from threadbridge import current
from threadbridge.telemetry.record import Record
from threadbridge.telemetry.telemetry import BATCH, INTERVAL, Telemetry

CONTEXT = SimpleNamespace(address=("192.0.2.1", 50000), remote_ip="192.0.2.1", protocol="http")


def hello(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"hello"]


class Reader:
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.batches: list[Sequence[Record]] = []

    def __call__(self, records: Sequence[Record]) -> None:
        self.batches.append(records)

    @property
    def records(self) -> list[Record]:
        return [record for batch in self.batches for record in batch]

    @property
    def targets(self) -> list[str]:
        return [record.target for record in self.records]


def pipelined(targets: Sequence[str]) -> bytes:
    *first, last = (f"GET {target} HTTP/1.1\r\nHost: a\r\n".encode() for target in targets)
    return b"".join(head + b"\r\n" for head in first) + last + b"Connection: close\r\n\r\n"


def test_each_record_comes_once_in_order_and_soon_without_more_requests() -> None:
    reader = Reader()
    targets = [f"/{number}" for number in range(2 * BATCH + BATCH // 2)]
    with BridgeThread(hello, threads=1) as server:
        server.bridge.telemetry.subscribe(reader)
        server.exchange(pipelined(targets))
        wait_until(lambda: len(reader.targets) >= len(targets), "the last ones come too")
    assert reader.targets == targets
    # Many at once, but not so many that the loop is held up by them.
    assert max(map(len, reader.batches)) <= 2 * BATCH and len(reader.batches) < len(targets) / 10


def test_many_requests_for_a_long_time_stay_few_batches() -> None:
    telemetry, reader = Telemetry(), Reader()
    telemetry.subscribe(reader)

    async def refuse() -> float:
        began = time.monotonic()
        while time.monotonic() - began < 10 * INTERVAL:
            for _ in range(BATCH // 10):
                telemetry.refused(CONTEXT, "GET / HTTP/1.1", 400, 0)
            # Several turns of the loop to a batch, as under load.
            await asyncio.sleep(0.001)
        return time.monotonic() - began

    seconds = asyncio.run(refuse())
    telemetry.flush()
    assert len(reader.batches) <= len(reader.records) / BATCH + seconds / INTERVAL + 2


def test_a_reader_that_fails_harms_no_other(caplog: pytest.LogCaptureFixture) -> None:
    def fail(records: Sequence[Record]) -> None:
        raise LookupError("cannot read")

    reader = Reader()
    with BridgeThread(hello, threads=1) as server:
        server.bridge.telemetry.subscribe(fail)
        server.bridge.telemetry.subscribe(reader)
        for target in ("/1", "/2"):
            server.request(path=target)
            wait_until(lambda target=target: target in reader.targets, "it is read")  # type: ignore[misc]
    # Twice, which is one line.
    assert caplog.text.count("a reader of the telemetry failed") == caplog.text.count("LookupError: cannot read") == 1


def test_a_record_says_how_long_what_took() -> None:
    go_on = threading.Event()

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        if environ["PATH_INFO"] == "/first":
            assert go_on.wait(30)
        return hello(environ, start_response)

    reader = Reader()
    before = time.time()
    with BridgeThread(app, threads=1) as server:
        server.bridge.telemetry.subscribe(reader)
        first = server.send(b"GET /first HTTP/1.1\r\nHost: a\r\n\r\n")
        wait_until(lambda: server.bridge.lanes[0].busy == 1, "it runs")
        second = server.send(pipelined(["/second"]))
        wait_until(lambda: server.bridge.lanes[0].queued == 1, "it waits")
        threading.Timer(0.2, go_on.set).start()
        for client in (first, second):
            assert client.recv(1000).startswith(b"HTTP/1.1 200 ")
            client.close()
    one, two = sorted(reader.records, key=lambda record: record.target)
    assert one.run >= 0.2 and two.wait >= 0.2
    for record in (one, two):
        assert record.total >= record.wait + record.run
        assert record.has_waited and record.has_run and record.slow_statements is None
        assert before - 1 <= record.started_at <= time.time() + 1


def test_what_was_never_run_has_not_run(caplog: pytest.LogCaptureFixture) -> None:
    entered = threading.Event()

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        left = threading.Event()
        current().on_cancel(left.set)
        entered.set()
        assert left.wait(30)
        return hello(environ, start_response)

    caplog.set_level(logging.CRITICAL, "threadbridge")
    reader = Reader()
    with BridgeThread(app, threads=1) as server:
        server.bridge.telemetry.subscribe(reader)
        running = server.send(b"GET /runs HTTP/1.1\r\nHost: a\r\n\r\n")
        assert entered.wait(30)
        waiting = server.send(b"GET /waits HTTP/1.1\r\nHost: a\r\n\r\n")
        wait_until(lambda: server.bridge.lanes[0].queued == 1, "it waits")
        receiving = server.send(b"POST /sends HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n")
        wait_until(lambda: len(server.bridge.exchanges.open) == 3, "its head is there")
        for client in (receiving, waiting, running):
            client.close()
        wait_until(lambda: len(reader.targets) == 3, "all have ended")
    how = {record.target: (record.has_waited, record.has_run, record.run > 0) for record in reader.records}
    assert how == {"/runs": (True, True, True), "/waits": (True, False, False), "/sends": (False, False, False)}


def test_a_bad_body_that_arrives_with_its_head_is_recorded_with_its_request() -> None:
    reader = Reader()
    with BridgeThread(hello, threads=1, xheaders=True) as server:
        server.bridge.telemetry.subscribe(reader)
        fields = "Host: localhost\r\nX-Real-IP: 203.0.113.9\r\nX-Scheme: http\r\nX-Request-ID: 5f2c1a0e9b7d4c3f"
        head = f"POST /x HTTP/1.1\r\n{fields}\r\nTransfer-Encoding: chunked\r\n\r\n"
        assert server.exchange(f"{head}no size\r\n".encode()).startswith(b"HTTP/1.1 400 ")
        wait_until(lambda: len(reader.records) == 1, "it is recorded")
    [record] = reader.records
    assert (record.client, record.id, record.lane) == ("203.0.113.9", "5f2c1a0e9b7d4c3f", "default")
    assert (record.status, record.ending) == (400, "refused")
