"""Overload: what cannot be served is refused at once, and what can be is served as if nothing were."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import random
import socket
import threading
import time
from collections import Counter
from wsgiref.types import StartResponse, WSGIEnvironment

import pytest

from tests.support.inprocess import BridgeThread, queue_job, wait_until
from threadbridge import Lane
from threadbridge.crossing.estimate import Estimate

GET = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\nConnection: close\r\n\r\n"


class Gate:
    """An application whose requests wait until the test lets that many go on."""

    def __init__(self) -> None:
        self.entered = 0
        self._lock = threading.Lock()
        self._passes = threading.Semaphore(0)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        with self._lock:
            self.entered += 1
        assert self._passes.acquire(timeout=20)
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"served"]

    def let_pass(self, count: int) -> None:
        self._passes.release(count)


@pytest.fixture
def gate() -> Gate:
    return Gate()


def response_to(client: socket.socket) -> http.client.HTTPResponse:
    with client:
        response = http.client.HTTPResponse(client)
        response.begin()
        response.read()
        return response


def assert_refused(client: socket.socket) -> None:
    response = response_to(client)
    assert response.status == 503 and 1 <= int(response.headers["Retry-After"]) <= 60


def fill(server: BridgeThread, gate: Gate) -> list[socket.socket]:
    """Have as many requests run and wait as can."""
    lane = server.bridge.lanes[-1]
    clients = [server.send(GET) for _ in range(lane.threads + lane.queue)]
    wait_until(lambda: lane.queued == lane.queue and gate.entered == lane.threads, "threads and queue are full")
    return clients


def test_what_finds_the_queue_full_is_refused_before_its_body_is_read(gate: Gate) -> None:
    with BridgeThread(gate, threads=2, queue=3) as server:
        clients = fill(server, gate)
        # No thread is free, and none of the ten bytes comes.
        assert_refused(server.send(POST))
        assert gate.entered == 2
        gate.let_pass(5)
        assert [response_to(client).status for client in clients] == [200] * 5


def test_so_is_what_finds_it_full_when_its_body_has_come(gate: Gate) -> None:
    with BridgeThread(gate, threads=2, queue=3) as server:
        arriving = server.send(POST + b"12345")
        wait_until(lambda: len(server.bridge.exchanges.open) == 1, "its head has been admitted")
        clients = fill(server, gate)
        arriving.sendall(b"67890")
        assert_refused(arriving)
        assert gate.entered == 2
        gate.let_pass(5)
        assert [response_to(client).status for client in clients] == [200] * 5


def test_without_a_queue_what_finds_no_thread_is_refused(gate: Gate) -> None:
    with BridgeThread(gate, threads=2, queue=0) as server:
        clients = fill(server, gate)
        assert_refused(server.send(GET))
        gate.let_pass(2)
        assert [response_to(client).status for client in clients] == [200] * 2


class Work:
    """A job for a lane that takes this many seconds, or until it is let go on."""

    client = ""

    def __init__(self, seconds: float) -> None:
        self.go_on = threading.Event()
        self.estimate = Estimate(None, "/", "")
        self._seconds = seconds

    def claim(self) -> bool:
        return True

    def run(self) -> None:
        self.go_on.wait(self._seconds)


def test_the_time_to_come_again_is_estimated_from_the_service_times() -> None:
    lane = Lane("test", threads=2, queue=100)
    # Nothing is known yet.
    assert lane.retry_after(Work(0)) == 1
    begun = time.monotonic()
    for _ in range(6):
        queue_job(lane, Work(0.2))
    wait_until(lambda: lane.busy == 0, "they are done")
    at_least, at_most = 0.2, time.monotonic() - begun
    works, estimates = [], []
    for count in range(10, 101, 10):
        for _ in range(10):
            works.append(Work(20))
            queue_job(lane, works[-1])
        estimates.append(lane.retry_after(Work(0)))
        assert (count - 1) / 2 * at_least <= estimates[-1] <= (count + 1) / 2 * at_most + 1
    assert estimates == sorted(estimates)
    for work in works:
        work.go_on.set()
    wait_until(lambda: lane.busy == 0, "all have run")


def test_nobody_is_told_to_come_again_in_an_hour() -> None:
    lane = Lane("test", threads=1, queue=100_000)
    queue_job(lane, Work(0.05))
    wait_until(lambda: lane.busy == 0, "its time is known")
    works = [Work(20) for _ in range(20_000)]
    for work in works:
        queue_job(lane, work)
    assert lane.retry_after(works[0]) == 600
    for work in works:
        work.go_on.set()
    wait_until(lambda: lane.busy == 0, "all have run")


def test_at_ten_times_its_capacity_a_server_serves_its_capacity(gate: Gate) -> None:
    threads, queue, rounds = 4, 4, 5
    # Otherwise short ones and others would have a queue each.
    with BridgeThread(gate, threads=threads, queue=queue, schedule="fair") as server:
        lane = server.bridge.lanes[-1]
        waiting: list[socket.socket] = []
        statuses: Counter[int] = Counter()
        for number in range(rounds):
            # Ten times of what can be served until the next round; what is too much is told so while nothing moves.
            room = threads + queue - len(waiting)
            clients = [server.send(GET) for _ in range(10 * threads)]
            too_many = len(clients) - room
            wait_until(lambda: sum(map(is_answered, clients)) == too_many, "those that are too many are answered")  # noqa: B023
            refused = [client for client in clients if is_answered(client)]
            for client in refused:
                assert_refused(client)
            waiting += [client for client in clients if client not in refused]
            wait_until(lambda count=(number + 1) * threads: gate.entered == count, "every thread is at work")  # type: ignore[misc]
            gate.let_pass(threads)
            wait_until(lambda: sum(map(is_answered, waiting)) == threads, "as many as there are threads")  # noqa: B023
            for client in [client for client in waiting if is_answered(client)]:
                waiting.remove(client)
                statuses[response_to(client).status] += 1
        assert statuses == {200: rounds * threads}
        gate.let_pass(queue)
        assert [response_to(client).status for client in waiting] == [200] * queue
        assert lane.queued == 0


def is_answered(client: socket.socket) -> bool:
    client.setblocking(False)
    try:
        return bool(client.recv(1, socket.MSG_PEEK))
    except BlockingIOError:
        return False
    finally:
        client.settimeout(10)


def test_who_has_left_takes_no_place_in_the_queue(gate: Gate) -> None:
    with BridgeThread(gate, threads=2, queue=3) as server:
        lane = server.bridge.lanes[-1]
        staying = fill(server, gate)
        for _ in range(3):
            staying.pop().close()
        wait_until(lambda: lane.queued == 0, "three are seen to have left")
        staying += [server.send(GET) for _ in range(3)]
        wait_until(lambda: lane.queued == 3, "three others wait in their places")
        assert_refused(server.send(GET))
        gate.let_pass(5)
        assert [response_to(client).status for client in staying] == [200] * 5
        assert gate.entered == 5


def test_whoever_leaves_when_nothing_is_left_over() -> None:
    """Thousands of requests, of which most are left while they arrive, wait, run or are answered."""
    pause = threading.Event()
    ran = itertools.count()

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        next(ran)
        pause.wait(0.001)
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"served"]

    statuses: Counter[int] = Counter()
    with BridgeThread(app, threads=3, queue=6) as server:
        lane = server.bridge.lanes[-1]

        def visit(seed: int) -> None:
            generator = random.Random(seed)
            for _ in range(500):
                client = server.send(generator.choice([GET, GET, POST, POST + b"12345"]))
                fate = generator.random()
                if fate < 0.3:
                    pause.wait(generator.random() / 100)
                if fate < 0.8:
                    client.close()
                    continue
                with contextlib.suppress(ConnectionError):
                    # Enough to complete any of the three.
                    client.sendall(b"1234567890")
                with contextlib.suppress(ConnectionError):
                    statuses[response_to(client).status] += 1

        visitors = [threading.Thread(target=visit, args=(seed,)) for seed in range(6)]
        for visitor in visitors:
            visitor.start()
        for visitor in visitors:
            while visitor.is_alive():
                visitor.join(0.0005)
                # On a loaded machine some count as long, and of each class as many may wait. Those for which a thread
                # is just about to begin are still counted as waiting.
                assert 0 <= lane.queued <= 2 * 6 + 3 and 0 <= lane.free <= 3
        wait_until(lambda: not server.bridge.exchanges.open, "every request has ended")
        wait_until(lambda: lane.busy == 0, "every thread is idle")
        assert (lane.queued, lane.free, server.bridge.spool.taken) == (0, 3, 0)
        for _ in range(2):
            assert server.request()[0].status == 200
    assert set(statuses) <= {200, 503} and 0 < statuses[200] <= next(ran)
