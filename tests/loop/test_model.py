"""Bridge, lanes, pool guard and exchanges against a simple model, whatever happens in whatever order.

The bridge is real, with its threads and a pool of SQLite connections. The loop is turned by hand, the application does
in its threads what it is told to, and the clients are what the bridge sees of them. After every step the bridge must
come to be as the model says.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar
from wsgiref.types import StartResponse, WSGIEnvironment

import pytest
from dbutils.pooled_db import PooledDB
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from tornado.httputil import HTTPHeaders, RequestStartLine

from tests.support import unknown_driver
from tests.support.bridge_model import BridgeModel, Client, Request
from threadbridge import Bridge, Lane
from threadbridge.crossing.spool import PART_PER_CLIENT
from threadbridge.loop import watch
from threadbridge.loop.lane_choice import QUICK_THREADS
from threadbridge.loop.receiver import Receiver

Result = TypeVar("Result")

CONNECTIONS = 2
QUEUE = 3
# Large enough for one large body of each client at a time.
SPOOL_SIZE = 2 * 1024**2 * PART_PER_CLIENT
LARGE_BODY = bytes(1200 * 1024)
PAST = 0.001


class Machine(RuleBasedStateMachine):
    """Does things to the bridge and to the model, and compares."""

    def __init__(self) -> None:
        super().__init__()
        # Its queries cannot be stopped, so that nothing happens but what the test orders.
        self.pool = PooledDB(unknown_driver, maxconnections=CONNECTIONS, blocking=True, database=":memory:")
        self.bridge = Bridge(
            self.application,
            pool=self.pool,
            lanes=[Lane("own", "/own", threads=1, queue=QUEUE)],
            queue=QUEUE,
            queue_timeout=1000,
            deadline=1000,
            spool_size=SPOOL_SIZE,
            # Which request runs next would depend on how long others took; that has a model of its own.
            schedule="fair",
        )
        self.loop = asyncio.new_event_loop()
        self.endings: list[str] = []
        self.bridge.telemetry.subscribe(lambda records: self.endings.extend(record.ending for record in records))
        self.model = BridgeModel(own=1, quick=QUICK_THREADS, connections=CONNECTIONS, queue=QUEUE)
        self.requests = self.model.requests

    # The application, in its threads.

    def application(self, environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        request = self.requests[int(environ["HTTP_X_NUMBER"])]
        connection: Any = None
        write: Callable[[bytes], object] | None = None
        try:
            while True:
                order = request.orders.get(timeout=60)
                if order == "answer":
                    if write is None:
                        start_response("200 OK", [("Content-Type", "text/plain")])
                    return [b"answer"]
                if order == "fail":
                    raise LookupError("as ordered")
                if order == "write":
                    write = write or start_response("200 OK", [("Content-Type", "text/plain")])
                    write(b"piece")
                elif order == "borrow":
                    connection = self.pool.connection()
                    request.holds_connection = True
                elif order == "give back":
                    request.holds_connection = False
                    connection.close()
                    connection = None
                request.obeyed += 1
        finally:
            request.holds_connection = False
            if connection is not None:
                connection.close()

    # The comparison.

    def on_loop(self, function: Callable[[], Result]) -> Result:
        async def call() -> Result:
            return function()

        return self.loop.run_until_complete(call())

    def actual(self) -> dict[str, object]:
        return {
            "requests": {
                request: (request.exchange.state.value, request.exchange.lane.name) for request in self.requests
            },
            "lanes": {lane.name: (lane.busy, lane.queued, lane.free) for lane in self.bridge.lanes},
            "cancelled": [
                request for request in self.requests if request.has_worker and request.exchange.running.cancelled
            ],
            "adopted": [request for request in self.requests if request.exchange in self.bridge.lanes[-1]._guests],
            "connections": sum(request.holds_connection for request in self.requests),
            "working": [request for request in self.requests if request.obeyed < request.ordered],
            "spooled": self.bridge.spool.taken,
        }

    @invariant()
    def the_bridge_is_as_the_model_says(self) -> None:
        give_up = time.monotonic() + 30
        while True:
            # What the workers have posted is delivered, and the watch looks at the clock.
            self.loop.run_until_complete(asyncio.sleep(0.002))
            actual, expected = self.actual(), self.model.expected()
            if actual == expected or time.monotonic() > give_up:
                break
        assert actual == expected
        self.bridge.telemetry.flush()
        assert Counter(self.endings) == Counter(request.state for request in self.requests if request.has_ended), (
            "each request ends once"
        )

    # What happens.

    @rule(
        arrivals=st.lists(
            st.tuples(
                st.sampled_from(["GET", "GET", "POST"]),
                st.sampled_from(["/own", "/a", "/a", "/b", "/c", "/d"]),
                st.sampled_from(["192.0.2.1", "192.0.2.2", "192.0.2.3"]),
                st.sampled_from([True, True, True, False]),
                st.sampled_from([True, True, False]),
            ),
            min_size=1,
            max_size=2,
        )
    )
    def arrive(self, arrivals: list[tuple[str, str, str, bool, bool]]) -> None:
        for method, path, address, is_complete, reads in arrivals:
            self.arrives(method, path, Client(address, reads), is_complete)
            # One after the other: the model knows no races.
            self.the_bridge_is_as_the_model_says()

    def arrives(self, method: str, path: str, client: Client, is_complete: bool) -> None:
        request = Request(len(self.requests), method, path, client)
        self.model.choose_lane(request)

        def begin() -> None:
            delegate = self.bridge.start_request(object(), client)  # type: ignore[arg-type]
            assert isinstance(delegate, Receiver)
            delegate.headers_received(
                RequestStartLine(method, path, "HTTP/1.1"), HTTPHeaders({"Host": "a", "X-Number": str(request.number)})
            )
            request.receiver = delegate
            request.exchange = delegate.exchange
            self.requests.append(request)
            if is_complete and not request.exchange.ended:
                delegate.finish()

        self.on_loop(begin)
        lane = request.lane
        if not (lane.has_room() or lane.newest_of_largest(request.exchange.client)):
            self.model.end(request, "shed")
        elif is_complete:
            self.model.complete(request)

    @precondition(lambda self: any(request.has_worker for request in self.requests))
    @rule(data=st.data(), order=st.sampled_from(["answer", "answer", "fail", "write"]))
    def order(self, data: st.DataObject, order: str) -> None:
        self.orders(data, order)

    @precondition(lambda self: any(request.has_worker for request in self.requests))
    @rule(data=st.data(), order=st.sampled_from(["borrow", "borrow", "borrow", "give back"]))
    def use_pool(self, data: st.DataObject, order: str) -> None:
        self.orders(data, order)

    def orders(self, data: st.DataObject, order: str) -> None:
        request = self.some(data, lambda request: request.may_be_told_to(order))
        if request is not None:
            self.model.order(request, order)
            request.orders.put(order)

    def some(self, data: st.DataObject, condition: Callable[[Request], bool]) -> Request | None:
        requests = [request for request in self.requests if condition(request)]
        return data.draw(st.sampled_from(requests)) if requests else None

    @rule(
        data=st.data(),
        happening=st.sampled_from(
            [
                "send_body",
                "send_body",
                "complete",
                "complete",
                "leave",
                "leave",
                "read",
                "reach_deadline",
                "wait_too_long",
            ]
        ),
    )
    def happen(self, data: st.DataObject, happening: str) -> None:
        condition, what = {
            "send_body": (lambda request: request.state == "receiving" and not request.has_sent_body, self.send_body),
            "complete": (lambda request: request.state == "receiving", self.complete),
            "leave": (lambda request: not request.has_ended, self.leave),
            "read": (lambda request: not request.client.reads and not request.client.has_left, self.read),
            "reach_deadline": (
                lambda request: not request.is_late and (request.has_worker or request.state == "queued"),
                self.reach_deadline,
            ),
            "wait_too_long": (lambda request: request.state == "queued", self.wait_too_long),
        }[happening]
        request = self.some(data, condition)
        if request is not None:
            what(request)

    def send_body(self, request: Request) -> None:
        """Send a piece of it: every third is too large for memory."""
        request.has_sent_body = True
        is_large = request.number % 3 == 0
        body = LARGE_BODY if is_large else b"small"
        written = self.on_loop(lambda: request.receiver.data_received(body))
        if written is not None:

            async def wait() -> None:
                await written

            self.loop.run_until_complete(wait())
        if is_large:
            client = request.exchange.client
            of_client = sum(other.spooled for other in self.requests if other.exchange.client == client)
            if of_client + len(body) > SPOOL_SIZE // PART_PER_CLIENT:
                self.model.end(request, "failed")
            else:
                request.spooled = len(body)

    def complete(self, request: Request) -> None:
        self.on_loop(request.receiver.finish)
        self.model.complete(request)

    def leave(self, request: Request) -> None:
        self.on_loop(lambda: request.client.leave(request.exchange))
        self.model.end(request, "abandoned")

    def read(self, request: Request) -> None:
        self.on_loop(request.client.read)
        if request.state == "responding" and request.is_all_sent:
            request.state = "done"

    def reach_deadline(self, request: Request) -> None:
        request.is_late = True
        request.exchange.running.deadline = PAST
        if request.state in ("queued", "running"):
            self.model.end(request, "expired")
        else:
            self.model.replace_if_stuck(request)

    def wait_too_long(self, request: Request) -> None:
        request.exchange.queued_at -= 2000
        self.model.end(request, "shed")

    def teardown(self) -> None:
        """Bring all to an end: nothing may be left over."""
        for request in self.requests:
            if not request.has_ended:
                self.leave(request)
                self.the_bridge_is_as_the_model_says()
        while any(request.has_worker for request in self.requests):
            for request in [request for request in self.requests if request.has_worker]:
                self.model.order(request, "answer")
                request.orders.put("answer")
        self.the_bridge_is_as_the_model_says()
        assert not self.bridge.exchanges.open
        assert [(lane.busy, lane.queued) for lane in self.bridge.lanes] == [(0, 0)] * 3
        for request in self.requests:
            client = request.client
            answered = {"done": (200, True), "shed": (503, True), "expired": (504, True)}.get(request.state)
            assert answered is None or answered == (client.status, client.is_finished)
            if request.state == "failed":
                assert (client.status in (500, 507) and client.is_finished) or (client.status == 200 and client.is_cut)
            if request.state == "abandoned":
                assert client.has_left and client.status in (None, 200)
        # Every route can be found out about, and all connections are there.
        for method, path in self.model.uses_pool:
            assert not self.model.probed
            assert not self.bridge.shared.routes.find(method, path).probing
        connections = [self.pool.connection() for _ in range(CONNECTIONS)]
        for connection in connections:
            connection.close()
        self.on_loop(self.bridge.close)
        self.bridge.join()
        self.loop.close()


def test_whatever_happens_every_request_ends_once_and_nothing_is_left_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "INTERVAL", 0.001)
    monkeypatch.setattr(watch, "STUCK_AFTER", 0.0)
    logger = logging.getLogger("threadbridge")
    monkeypatch.setattr(logger, "disabled", True)
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=50,
            stateful_step_count=60,
            deadline=None,
            # Each failing run waits for what does not come: making it smaller would take very long.
            phases=[Phase.reuse, Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )
