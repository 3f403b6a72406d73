"""A repeated fault costs few log lines, and none of its occurrences is forgotten."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from collections.abc import Callable
from contextlib import aclosing
from wsgiref.types import StartResponse, WSGIEnvironment

import pytest

from tests.support.inprocess import BridgeThread, wait_until
from tests.support.requests_in_threads import running
from threadbridge import HTTPServer
from threadbridge.admin.events import Events
from threadbridge.common.repeated_log import RepeatedLog
from threadbridge.common.threads import BackgroundThread
from threadbridge.database.stopper import Stopper
from threadbridge.http.socket_stream import SocketStream


def test_a_line_stands_for_those_that_were_left_out(caplog: pytest.LogCaptureFixture) -> None:
    log = RepeatedLog(logging.getLogger("threadbridge.test"), interval=3600)
    log.log(logging.ERROR, "no thread for %s", "lane a")
    for _ in range(7):
        log.log(logging.ERROR, "no thread for %s", "lane b")
    log._next_at = 0.0
    log.log(logging.ERROR, "no thread for %s", "lane c")
    assert caplog.messages == [
        "no thread for lane a",
        "no thread for lane c (and 7 more like this since the last such line)",
    ]


def test_threads_that_log_at_once_write_one_line(caplog: pytest.LogCaptureFixture) -> None:
    log = RepeatedLog(logging.getLogger("threadbridge.test"), interval=3600)
    together = threading.Barrier(8)

    def fail() -> None:
        together.wait()
        for _ in range(100):
            log.log(logging.ERROR, "failed")

    threads = [threading.Thread(target=fail) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert caplog.messages == ["failed"]
    assert log._left_out == 799


class Fault:
    """Fails whenever it is called; counts that."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1
        raise LookupError("as asked")


def on_cancel(fault: Fault) -> str:
    with running() as request:
        for _ in range(3):
            request.on_cancel(fault)
        request.cancel()
    return "request test: a callback of on_cancel failed"


def handing_back(fault: Fault) -> str:
    background = BackgroundThread()
    for _ in range(3):
        background.do(fault)
    background.close()
    background.start()
    assert background._thread is not None
    background._thread.join()
    return "a connection could not be returned to the pool"


def stopping(fault: Fault) -> str:
    stopper = Stopper()
    for _ in range(3):
        stopper.repeat(fault.__call__, 3600)
    wait_until(lambda: fault.count == 3, "all have been tried")
    stopper.close()
    wait_until(lambda: stopper.thread is None, "the thread has ended")
    return "error in the stopper thread; a cancelled query may still be running"


def in_the_background(fault: Fault) -> str:
    async def run() -> None:
        server, done = HTTPServer(print), asyncio.Event()
        for _ in range(3):
            server.run_in_steps(fault)
        server.run_in_steps(done.set)
        await done.wait()

    asyncio.run(run())
    return "a step of a connection's work failed"


def making_events(fault: Fault) -> str:
    async def make() -> bytes:
        if fault.count == 3:
            return b"event"
        fault()
        raise AssertionError

    async def run() -> None:
        async with aclosing(Events(make).read()) as events:
            assert [await anext(events) for _ in range(4)][-1] == b"event"

    asyncio.run(run())
    return "cannot update the operators' page"


def receiving(fault: Fault) -> str:
    async def run() -> None:
        for _ in range(3):
            client, server = socket.socketpair()
            closed = asyncio.Event()
            stream = SocketStream(server, asyncio.get_running_loop())
            stream.set_close_callback(closed.set)
            stream.receive(lambda data: fault())
            stream.watch()
            client.send(b"data")
            await closed.wait()
            client.close()

    asyncio.run(run())
    return "closed a connection because the server failed"


@pytest.mark.parametrize("fails", [on_cancel, handing_back, stopping, in_the_background, making_events, receiving])
def test_a_fault_that_is_repeated_is_one_line(
    fails: Callable[[Fault], str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("threadbridge.admin.events.INTERVAL", 0.01)
    fault = Fault()
    message = fails(fault)
    assert fault.count == 3
    [record] = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert record.getMessage() == message
    assert record.exc_info is not None and isinstance(record.exc_info[1], LookupError)


def test_bodies_that_are_too_long_are_one_line(caplog: pytest.LogCaptureFixture) -> None:
    def app(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "3")])
        return [b"abcdef"]

    with BridgeThread(app, threads=1) as server:
        for _ in range(3):
            assert server.request()[1] == b"abc"
    [record] = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert record.getMessage().endswith("the body is longer than its Content-Length; the excess was not sent")
