"""Deadlines: what is answered when, who is told to stop, and what becomes of threads that do not come back."""

from __future__ import annotations

import errno
import http.client
import logging
import random
import re
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any
from wsgiref.types import StartResponse, WSGIEnvironment

import pytest

from tests.support.inprocess import BridgeThread, reset, wait_until
from threadbridge import Lane, current
from threadbridge.loop import watch

SOON = 0.75
NEVER = 1000.0


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Look at the clock more often, and wait less long for workers; keep the access log."""
    caplog.set_level(logging.INFO, "tornado.access")
    monkeypatch.setattr(watch, "INTERVAL", 0.01)
    monkeypatch.setattr(watch, "STUCK_AFTER", 0.05)


class Application:
    """Runs requests as their paths say until the test, or a cancellation, lets them go on."""

    def __init__(self) -> None:
        self.entered: list[str] = []
        self.cancelled: list[str] = []
        self.go_on = threading.Event()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterator[bytes]:
        path = environ["PATH_INFO"]
        self.entered.append(path)
        if path.startswith("/stream"):
            start_response("200 OK", [("Content-Type", "text/plain")])
            yield b"begun"
        if path.startswith("/polite"):
            self.stop_when_cancelled()
        if path.startswith(("/stubborn", "/stream")):
            self.ignore_cancellation()
        if not path.startswith("/stream"):
            start_response("200 OK", [("Content-Type", "text/plain")])
        yield b" and done"

    def stop_when_cancelled(self) -> None:
        told = threading.Event()
        current().on_cancel(told.set)
        assert told.wait(20)
        assert current().cancelled
        self.cancelled.append("told")

    def ignore_cancellation(self) -> None:
        assert self.go_on.wait(20)
        if current().cancelled:
            self.cancelled.append("ignored")


class Server(BridgeThread):
    """Lets what still runs go on at the end of the block."""

    def __init__(self, **parameters: Any) -> None:
        self.application = Application()
        super().__init__(self.application, **parameters)

    def __enter__(self) -> Server:
        super().__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self.application.go_on.set()
        super().__exit__(*exception)

    def begin(self, path: str, method: str = "GET") -> socket.socket:
        """Send a request and wait until it runs."""
        count = len(self.application.entered)
        client = self.queue(path, method)
        wait_until(lambda: len(self.application.entered) > count, f"{path} runs")
        return client

    def queue(self, path: str, method: str = "GET") -> socket.socket:
        return self.send(f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())

    def assert_width(self) -> None:
        """As many requests run at once as the lane has threads."""
        lane = self.bridge.lanes[-1]
        entered = self.application.entered
        self.application.go_on.set()
        wait_until(lambda: lane.busy == 0, "all threads are idle")
        self.application.go_on.clear()
        entered.clear()
        clients = [self.queue("/stubborn") for _ in range(lane.threads + 1)]
        wait_until(lambda: lane.queued == 1 and entered.count("/stubborn") == lane.threads, "every thread runs one")
        assert lane.busy == lane.threads
        self.application.go_on.set()
        assert [response_to(client).status for client in clients] == [200] * len(clients)


def response_to(client: socket.socket) -> http.client.HTTPResponse:
    with client:
        response = http.client.HTTPResponse(client)
        response.begin()
        response.body = response.read()  # type: ignore[attr-defined]
        return response


def stuck(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "its thread is stuck" in record.getMessage()]


def endings(caplog: pytest.LogCaptureFixture) -> list[str]:
    messages = [record.getMessage() for record in caplog.records if record.name == "tornado.access"]
    return [line.rpartition("ending=")[2].split()[0] for message in messages for line in message.splitlines()]


def test_over_the_deadline_the_client_gets_504_and_the_worker_is_told(caplog: pytest.LogCaptureFixture) -> None:
    with Server(threads=1, deadline=SOON) as server:
        assert response_to(server.begin("/polite")).status == 504
        wait_until(lambda: server.bridge.lanes[-1].busy == 0, "the worker is back")
        assert server.application.cancelled == ["told"]
    assert stuck(caplog) == [] and endings(caplog) == ["expired"]


def test_the_deadline_of_a_request_is_what_the_application_is_told() -> None:
    seen: list[float] = []

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        deadline = current().deadline
        assert deadline is not None
        seen.append(deadline)
        start_response("200 OK", [("Content-Type", "text/plain")])
        return []

    with BridgeThread(app, threads=1, deadline=NEVER, lanes=[Lane("l", "/l", threads=1, deadline=2 * NEVER)]) as server:
        server.request(path="/")
        server.request(path="/l")
        server.request(path="/")
    assert seen[0] < seen[2] < seen[0] + NEVER < seen[1] < seen[2] + 2 * NEVER


def test_a_lane_s_own_deadline(caplog: pytest.LogCaptureFixture) -> None:
    lanes = [Lane("short", "/polite", threads=1, deadline=SOON), Lane("long", "/stubborn", threads=1, deadline=NEVER)]
    with Server(threads=1, lanes=lanes, deadline=2 * SOON) as server:
        long = server.begin("/stubborn")
        assert response_to(server.begin("/polite")).status == 504
        # The default, too, has passed by then for the one that began first; its lane's counts.
        assert response_to(server.begin("/polite/by/default")).status == 504
        server.application.go_on.set()
        assert response_to(long).status == 200
        wait_until(lambda: endings(caplog) == ["expired", "expired", "done"], "all three have ended, each in its way")


def test_waiting_counts_for_the_deadline() -> None:
    with Server(threads=1, deadline=NEVER, lanes=[Lane("l", "/stubborn*", threads=1, deadline=SOON)]) as server:
        first = server.begin("/stubborn")
        second = server.queue("/stubborn/waiting")
        assert [response_to(first).status, response_to(second).status] == [504, 504]
        wait_until(lambda: not server.bridge.exchanges.open, "both have ended")
        server.application.go_on.set()
        wait_until(lambda: server.bridge.lanes[0].busy == 0, "the thread is free")
        assert server.application.entered == ["/stubborn"]


def test_who_waits_too_long_is_told_to_come_again(caplog: pytest.LogCaptureFixture) -> None:
    with Server(threads=1, queue_timeout=SOON) as server:
        running = server.begin("/stubborn")
        response = response_to(server.queue("/waiting"))
        assert response.status == 503 and int(response.headers["Retry-After"]) >= 1
        assert server.bridge.lanes[-1].queued == 0
        # One that runs has waited long enough.
        server.application.go_on.set()
        assert response_to(running).status == 200
        assert server.application.entered == ["/stubborn"]
    assert endings(caplog)[0] == "shed"


def test_the_deadline_ends_with_the_beginning_of_the_response(caplog: pytest.LogCaptureFixture) -> None:
    with Server(threads=2, deadline=SOON) as server:
        stream = server.begin("/stream")
        # It has begun before the other, whose deadline passes.
        assert response_to(server.begin("/polite")).status == 504
        server.application.go_on.set()
        assert response_to(stream).body == b"begun and done"  # type: ignore[attr-defined]
        wait_until(lambda: server.application.cancelled == ["told"], "only the other is cancelled")
    assert stuck(caplog) == []


def test_the_deadline_begins_when_the_request_is_complete() -> None:
    with Server(threads=1, deadline=SOON) as server:
        slow = server.send(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\nConnection: close\r\n\r\n.")
        wait_until(lambda: len(server.bridge.exchanges.open) == 1, "its head has arrived")
        [exchange] = server.bridge.exchanges.open
        # A deadline that began later passes meanwhile.
        assert response_to(server.begin("/polite")).status == 504
        before = time.monotonic()
        slow.sendall(b".")
        assert response_to(slow).status == 200
        assert exchange.running.deadline is not None and exchange.running.deadline >= before + SOON


def test_a_stuck_thread_is_replaced_even_if_its_stack_cannot_be_shown(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> dict[int, str]:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("threadbridge.loop.watch.stacks", fail)
    with Server(threads=1, deadline=SOON) as server:
        assert response_to(server.begin("/stubborn")).status == 504
        wait_until(lambda: len(stuck(caplog)) == 1, "it is reported")
        assert "Too many open files" in stuck(caplog)[0]
        assert response_to(server.queue("/next")).status == 200
        server.application.go_on.set()


def test_a_stuck_thread_is_reported_once_with_its_stack_and_replaced(caplog: pytest.LogCaptureFixture) -> None:
    with Server(threads=1, deadline=SOON) as server:
        lane = server.bridge.lanes[-1]
        assert response_to(server.begin("/stubborn")).status == 504
        wait_until(lambda: len(stuck(caplog)) == 1, "it is reported")
        [report] = stuck(caplog)
        assert "GET /stubborn; a spare thread takes its place" in report
        calls = re.findall(r"in (\w+)$", report, re.MULTILINE)
        assert (
            calls.index("wait")
            < calls.index("ignore_cancellation")
            < calls.index("__call__")
            < calls.index("_bootstrap")
        )
        # Service goes on; the thread keeps its slot.
        assert response_to(server.queue("/next")).status == 200
        wait_until(lambda: lane.busy == lane.stuck == 1, "only the stuck one is at work")
        # As many as the lane has are replaced, and no more; each is reported once.
        assert response_to(server.begin("/stubborn/2")).status == 504
        wait_until(lambda: len(stuck(caplog)) == 2, "the other is reported")
        assert "no spare thread is left in lane" in stuck(caplog)[1]
        assert lane.stuck == 2
        assert response_to(server.queue("/not/served")).status == 504
        assert "/not/served" not in server.application.entered
        server.application.go_on.set()
        assert response_to(server.queue("/served")).status == 200
        wait_until(lambda: server.application.cancelled == ["ignored"] * 2, "both have come back")
        wait_until(lambda: lane.busy == lane.stuck == 0, "no thread too many")
    assert len(stuck(caplog)) == 2


def test_the_width_is_as_before_when_stuck_threads_have_come_back(caplog: pytest.LogCaptureFixture) -> None:
    with Server(threads=3, deadline=NEVER) as server:
        for round_number in range(5):
            leaving = [server.begin(f"/stubborn/{number}") for number in range(3)]
            for client in leaving:
                client.close()
            wait_until(lambda count=3 * (round_number + 1): len(stuck(caplog)) == count, "all are reported")  # type: ignore[misc]
            beside = [server.begin(f"/stubborn/beside/{number}") for number in range(3)]
            assert server.bridge.lanes[-1].busy == 6
            server.application.go_on.set()
            assert [response_to(client).status for client in beside] == [200] * 3
            server.assert_width()
            server.application.go_on.clear()


def test_the_width_is_as_before_when_many_leave_and_are_replaced_at_random(monkeypatch: pytest.MonkeyPatch) -> None:
    # At once, so that threads are replaced in the very moment in which they come back.
    monkeypatch.setattr(watch, "INTERVAL", 0.001)
    monkeypatch.setattr(watch, "STUCK_AFTER", 0.0)
    pause = threading.Event()
    generator = random.Random(3)

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        pause.wait(generator.random() / 200)
        start_response("200 OK", [("Content-Type", "text/plain")])
        return []

    with Server(threads=3, deadline=NEVER) as server:
        logging.getLogger("threadbridge").disabled = True
        try:
            server.bridge.application = app
            for _ in range(1500):
                client = server.queue("/")
                if generator.random() < 0.8:
                    client.close()
                else:
                    assert response_to(client).status == 200
            lane = server.bridge.lanes[-1]
            wait_until(lambda: not server.bridge.exchanges.open and lane.busy == 0, "all have ended")
        finally:
            logging.getLogger("threadbridge").disabled = False
        assert lane.free == 3 and lane.queued == 0
        server.bridge.application = server.application
        server.assert_width()


def test_what_is_not_cancelled_may_go_on_until_its_deadline(caplog: pytest.LogCaptureFixture) -> None:
    with Server(threads=3, deadline=NEVER) as server:
        for path, method in (("/stubborn/post", "POST"), ("/stubborn/get", "GET")):
            reset(server.begin(path, method))
        wait_until(lambda: not server.bridge.exchanges.open, "both clients are seen to have left")
        wait_until(lambda: bool(stuck(caplog)), "one is reported")
        # Some more looks at the clock.
        server.begin("/stubborn/third").close()
        wait_until(lambda: len(stuck(caplog)) == 2, "another is reported")
        assert "GET /stubborn/get" in stuck(caplog)[0] and "GET /stubborn/third" in stuck(caplog)[1]
        server.application.go_on.set()
        wait_until(lambda: server.bridge.lanes[-1].busy == 0, "all have come back")
        assert server.application.cancelled == ["ignored"] * 2


def test_what_its_method_protects_is_cancelled_some_time_after_its_deadline_and_then_reported(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with Server(threads=3, deadline=SOON, cancel="none") as server:
        server.begin("/stubborn/left").close()
        assert response_to(server.begin("/stubborn")).status == 504
        assert response_to(server.begin("/polite")).status == 504
        wait_until(lambda: server.application.cancelled == ["told"], "one heeds it")
        wait_until(lambda: len(stuck(caplog)) == 2, "the others are reported")
        server.application.go_on.set()
        wait_until(lambda: server.bridge.lanes[-1].busy == 0, "the threads are free")
        assert server.application.cancelled == ["told", "ignored", "ignored"]
    assert caplog.text.count("and it still runs: GET") == 3


def test_a_worker_is_expected_back_when_it_is_told_or_its_time_is_over_but_not_before_the_end() -> None:
    with Server(threads=2, deadline=NEVER) as server:
        client = server.begin("/stream")
        [exchange] = server.bridge.exchanges.open
        deadline = exchange.running.deadline
        assert deadline is not None
        # A stream may end long after its deadline, and its worker needs a moment then.
        exchange.ended_at = deadline + 500
        assert watch.expected_back(exchange) == deadline + 500
        exchange.ended_at = deadline - 500
        assert watch.expected_back(exchange) == deadline
        exchange.running.cancel()
        assert watch.expected_back(exchange) == deadline - 500
        client.close()


def test_the_watch_goes_on_when_something_fails_in_it(caplog: pytest.LogCaptureFixture) -> None:
    def fail(record: logging.LogRecord) -> bool:
        raise LookupError("a stuck thread cannot be reported")

    logger = logging.getLogger("threadbridge")
    with Server(threads=2, deadline=SOON) as server:
        logger.addFilter(fail)
        try:
            assert response_to(server.begin("/stubborn")).status == 504
            wait_until(lambda: "a stuck thread cannot be reported" in caplog.text, "the watch has failed")
        finally:
            logger.removeFilter(fail)
        assert response_to(server.begin("/polite")).status == 504


def test_closing_ends_what_still_runs_and_waits(caplog: pytest.LogCaptureFixture) -> None:
    with Server(threads=2, queue=10) as server:
        running = [server.begin("/polite"), server.begin("/polite")]
        waiting = [server.queue("/waiting") for _ in range(5)]
        wait_until(lambda: len(server.bridge.exchanges.open) == 7, "five wait")
        closed = threading.Event()

        def close() -> None:
            server.bridge.close()
            closed.set()

        server.loop.call_soon_threadsafe(close)
        assert closed.wait(30)
        server.bridge.join()
        assert not server.bridge.exchanges.open
        assert server.application.cancelled == ["told"] * 2 and server.application.entered == ["/polite"] * 2
        for client in running + waiting:
            client.close()
    assert endings(caplog) == ["abandoned"] * 7
    assert not [record for record in caplog.records if record.name in ("asyncio", "tornado.application")]
