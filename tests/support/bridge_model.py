"""A simple model of the bridge's lanes, and the clients' end of its connections."""

from __future__ import annotations

import queue
from asyncio import Future
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from tornado.httputil import HTTPHeaders, ResponseStartLine
from tornado.iostream import StreamClosedError

from threadbridge.crossing.exchange import Exchange
from threadbridge.crossing.states import ENDINGS
from threadbridge.loop.receiver import Receiver

ENDED = {state.value for state in ENDINGS}


class Client:
    """The client's end: an exchange's `Connection`."""

    def __init__(self, address: str, reads: bool) -> None:
        self.context = SimpleNamespace(remote_ip=address, address=(address, 1), protocol="http")
        self.reads = reads
        self.has_left = False
        self.is_cut = False
        self.is_finished = False
        self.status: int | None = None
        self._unread: list[Future[None]] = []
        self._on_close: Callable[[], None] | None = None

    def set_close_callback(self, callback: Any) -> None:
        self._on_close = callback

    def write_headers(self, start_line: ResponseStartLine, headers: HTTPHeaders, chunk: bytes) -> Future[None]:
        assert self.status is None, "one head for each request"
        self.status = start_line.code
        return self.write(chunk)

    def write(self, chunk: bytes | memoryview) -> Future[None]:
        assert self.status is not None and not self.is_finished
        written: Future[None] = Future()
        if self.has_left:
            written.set_exception(StreamClosedError())
            written.exception()
        elif self.reads:
            written.set_result(None)
        else:
            self._unread.append(written)
        return written

    def finish(self) -> None:
        self.is_finished = True

    def close(self) -> None:
        self.is_cut = True

    def read(self) -> None:
        """Read from now on."""
        self.reads = True
        for written in self._unread:
            written.set_result(None)
        self._unread.clear()

    def leave(self, exchange: Exchange) -> None:
        self.has_left = True
        for written in self._unread:
            written.set_exception(StreamClosedError())
            written.exception()
        self._unread.clear()
        (self._on_close or exchange.on_connection_close)()


class Request:
    """What the model knows of a request, and the orders for its worker."""

    def __init__(self, number: int, method: str, path: str, client: Client) -> None:
        self.number = number
        self.method = method
        self.path = path
        self.client = client
        self.receiver: Receiver
        self.exchange: Exchange
        self.lane: ModelLane
        self.state = "receiving"
        self.is_probe = False
        self.is_cancelled = False
        self.is_late = False
        self.is_reported = False
        self.is_replaced = False
        # Its thread is stuck, and the pool no longer counts the connection that it holds.
        self.has_lost_connection = False
        self.has_worker = False
        self.has_sent_body = False
        self.pieces = 0
        self.is_all_sent = False
        self.has_asked = False
        self.wants_connection = False
        self.spooled = 0
        # The worker's side.
        self.orders: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.ordered = 0
        self.obeyed = 0
        self.holds_connection = False

    def __repr__(self) -> str:
        return f"{self.number}"

    @property
    def has_ended(self) -> bool:
        return self.state in ENDED

    def may_be_told_to(self, order: str) -> bool:
        """Whether its worker waits for an order such as this."""
        if not self.has_worker or self.obeyed < self.ordered:
            return False
        return {"borrow": not self.wants_connection, "give back": self.holds_connection}.get(order, True)

    @property
    def route(self) -> tuple[str, str]:
        return self.method, self.path


class ModelLane:
    """A lane as it is meant to be."""

    def __init__(self, name: str, threads: int, queue: int) -> None:
        self.name = name
        self.threads = threads
        self.queue = queue
        self.waiting: list[Request] = []
        self.running: list[Request] = []
        # Those that another lane runs in place of this one's.
        self.guests: list[Request] = []
        # Those for which another is to run once fewer are replaced.
        self.to_replace: list[Request] = []
        # The clients that wait, in the order of their turns.
        self.turns: list[str] = []
        self.served = ""

    @property
    def width(self) -> int:
        return self.threads + self.replaced - len(self.guests)

    @property
    def replaced(self) -> int:
        return sum(request.is_replaced for request in self.running)

    @property
    def free(self) -> int:
        return max(0, self.width - len(self.running) - len(self.waiting))

    def has_room(self) -> bool:
        return len(self.running) + len(self.waiting) < self.width + self.queue

    def newest_of_largest(self, client: str) -> Request | None:
        """What makes room for a request of this client."""
        counts = Counter(request.exchange.client for request in self.waiting)
        largest = max(counts.values(), default=0)
        if counts[client] + 1 >= largest:
            return None
        [(most, count)] = counts.most_common(1)
        # Small as the queue is, no two clients can have more than a third one.
        assert list(counts.values()).count(count) == 1
        return [request for request in self.waiting if request.exchange.client == most][-1]

    def put(self, request: Request) -> None:
        self.waiting.append(request)
        if request.exchange.client not in self.turns:
            self.turns.append(request.exchange.client)

    def remove(self, request: Request) -> None:
        self.waiting.remove(request)
        if all(other.exchange.client != request.exchange.client for other in self.waiting):
            self.turns.remove(request.exchange.client)

    def replace_what_can(self) -> None:
        self.to_replace = [request for request in self.to_replace if request in self.running]
        while self.to_replace and self.replaced < self.threads:
            self.to_replace.pop(0).is_replaced = True

    def run_what_can(self) -> None:
        while self.waiting and len(self.running) < self.width:
            if self.served in self.turns:
                self.turns.remove(self.served)
                self.turns.append(self.served)
            self.served = self.turns[0]
            request = next(request for request in self.waiting if request.exchange.client == self.served)
            self.remove(request)
            self.running.append(request)
            request.state = "running"
            request.has_worker = True


class BridgeModel:
    """A bridge over a pool, with a lane ``own`` for /own, as it is meant to be."""

    def __init__(self, own: int, quick: int, connections: int, queue: int) -> None:
        self.requests: list[Request] = []
        self.own = ModelLane("own", own, queue)
        self.quick = ModelLane("quick", quick, queue)
        self.main = ModelLane("pool", connections, queue)
        self.lanes = [self.own, self.quick, self.main]
        self.uses_pool: dict[tuple[str, str], bool | None] = {}
        self.probed: set[tuple[str, str]] = set()

    def worker_is_back(self, request: Request) -> None:
        request.has_worker = False
        request.is_replaced = False
        request.wants_connection = request.has_lost_connection = False
        request.obeyed = request.ordered
        request.spooled = 0
        request.lane.running.remove(request)
        self.main.guests = [guest for guest in self.main.guests if guest is not request]
        request.lane.replace_what_can()
        self.learns_from(request)
        self.run_what_can()

    def learns_from(self, request: Request) -> None:
        """The request has run, as far as its answer or to its end."""
        if request.lane is not self.own:
            if request.is_probe:
                self.probed.discard(request.route)
            if self.uses_pool.get(request.route) is None:
                self.uses_pool[request.route] = False

    def run_what_can(self) -> None:
        for lane in self.lanes:
            lane.run_what_can()

    def end(self, request: Request, state: str) -> None:
        left, request.state = request.state, state
        if left in ("receiving", "queued"):
            request.spooled = 0
            if left == "queued" and request in request.lane.waiting:
                request.lane.remove(request)
            if request.is_probe:
                self.probed.discard(request.route)
        elif state in ("abandoned", "expired") and request.method == "GET":
            self.cancel(request)
        self.replace_if_stuck(request)

    def cancel(self, request: Request) -> None:
        request.is_cancelled = True
        if request.wants_connection and not request.holds_connection:
            # It is not kept waiting for a connection.
            self.worker_is_back(request)

    def replace_if_stuck(self, request: Request) -> None:
        is_expected_back = request.is_cancelled or request.is_late or request.state == "expired"
        if request.has_worker and request.has_ended and is_expected_back and not request.is_reported:
            request.is_reported = True
            self.cancel(request)
            if request.has_worker:
                self.replace(request)
                request.has_lost_connection = request.holds_connection
                self.main.guests = [guest for guest in self.main.guests if guest is not request]
        self.run_what_can()

    def replace(self, request: Request) -> None:
        if request not in request.lane.to_replace:
            request.lane.to_replace.append(request)
        request.lane.replace_what_can()

    def learns_that_it_asks(self, request: Request) -> None:
        if request.lane is self.own:
            return
        if request.lane is self.quick and not request.has_asked and not request.has_ended:
            self.main.guests.append(request)
        request.has_asked = True
        if self.uses_pool.get(request.route):
            return
        is_misjudged = self.uses_pool.get(request.route) is False or request.route in self.probed
        self.uses_pool[request.route] = True
        if not is_misjudged:
            return
        for other in sorted(self.requests, key=lambda other: (other.has_worker, other.exchange.queued_at)):
            if other.route != request.route or other.lane is not self.quick or other.has_ended:
                continue
            if other.state == "receiving":
                other.lane = self.main
            elif other.state == "queued":
                self.quick.remove(other)
                other.lane = self.main
                self.queue(other)
            elif other.has_worker and not other.is_replaced:
                self.replace(other)
        self.run_what_can()

    def queue(self, request: Request) -> None:
        displaced = None if request.lane.has_room() else request.lane.newest_of_largest(request.exchange.client)
        if displaced is not None:
            self.end(displaced, "shed")
        # Even if more wait than may, since others are counted in the lane by now.
        if displaced is not None or request.lane.has_room():
            request.state = "queued"
            request.lane.put(request)
            self.run_what_can()
        else:
            self.end(request, "shed")

    def choose_lane(self, request: Request) -> None:
        uses_pool = self.uses_pool.get(request.route)
        if request.path == "/own":
            request.lane = self.own
        elif uses_pool is False:
            request.lane = self.quick
        elif uses_pool is None and self.quick.free >= 2 and request.route not in self.probed:
            request.lane = self.quick
            request.is_probe = True
            self.probed.add(request.route)
        else:
            request.lane = self.main

    def complete(self, request: Request) -> None:
        if request.is_probe and request.state == "receiving" and request.lane is self.quick and self.quick.free < 2:
            request.lane = self.main
        self.queue(request)

    def expected(self) -> dict[str, object]:
        """What must be seen of the bridge."""
        wanting = [request for request in self.requests if request.wants_connection]
        lost = sum(request.has_lost_connection for request in wanting)
        connections = lost + min(self.main.threads, len(wanting) - lost)
        waiting = [request for request in wanting if not request.holds_connection]
        return {
            "requests": {request: (request.state, request.lane.name) for request in self.requests},
            "lanes": {lane.name: (len(lane.running), len(lane.waiting), lane.free) for lane in self.lanes},
            "cancelled": [request for request in self.requests if request.has_worker and request.is_cancelled],
            "adopted": [request for request in self.requests if request in self.main.guests],
            "connections": connections,
            "working": waiting,
            "spooled": sum(request.spooled for request in self.requests),
        }

    def order(self, request: Request, order: str) -> None:
        """The worker does what it is told to."""
        request.ordered += 1
        if order == "answer":
            self.answers(request)
        elif order == "write":
            self.writes(request)
        elif order == "borrow":
            self.asks_for_connection(request)
        elif order == "give back":
            request.wants_connection = request.has_lost_connection = False
        elif order == "fail":
            self.worker_is_back(request)
            if not request.has_ended:
                self.end(request, "failed")

    def answers(self, request: Request) -> None:
        request.is_all_sent = True
        if request.state in ("running", "responding"):
            request.state = "done" if request.client.reads else "responding"
        self.worker_is_back(request)

    def writes(self, request: Request) -> None:
        request.pieces += 1
        if request.state == "running":
            request.state = "responding"
            self.learns_from(request)
        elif request.has_ended and request.pieces > 1:
            # The application is told that nobody reads.
            self.worker_is_back(request)

    def asks_for_connection(self, request: Request) -> None:
        self.learns_that_it_asks(request)
        if request.is_cancelled:
            self.worker_is_back(request)
        else:
            request.wants_connection = True
