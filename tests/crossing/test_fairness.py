"""Fairness: clients are served in turn, each one's requests in order, at a cost that does not grow."""

from __future__ import annotations

import http.client
import random
import socket
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable
from wsgiref.types import StartResponse, WSGIEnvironment

import pytest

from tests.support.inprocess import BridgeThread, wait_until
from threadbridge.crossing.fair_queue import FairQueue
from threadbridge.http.forwarded import client_of


class Turnstile:
    """An application that lets one request pass each time it is told to, and notes their order."""

    def __init__(self) -> None:
        self.order: list[str] = []
        self._passes = threading.Semaphore(0)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        self.order.append(environ["PATH_INFO"])
        assert self._passes.acquire(timeout=20)
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [environ["PATH_INFO"].encode()]

    def let_pass(self, count: int) -> None:
        self._passes.release(count)


class Queue:
    """One thread, which is taken, and requests that wait for it."""

    def __init__(self, server: BridgeThread, turnstile: Turnstile) -> None:
        self._server = server
        self._clients: list[socket.socket] = []
        self.turnstile = turnstile
        self._send("/first", "127.0.0.9", "")
        wait_until(lambda: turnstile.order == ["/first"], "the thread is taken")

    def add(self, path: str, *, address: str = "127.0.0.1", headers: str = "") -> None:
        """Queue a request of the client at this address; one after the other, in the order of the calls."""
        queued = self._server.bridge.lanes[-1].queued
        self._send(path, address, headers)
        wait_until(lambda: self._server.bridge.lanes[-1].queued == queued + 1, "it waits")

    def _send(self, path: str, address: str, headers: str) -> None:
        client = socket.create_connection(("127.0.0.1", self._server.port), 10, source_address=(address, 0))
        client.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}\r\n".encode())
        self._clients.append(client)

    def order(self) -> list[str]:
        """Let all pass, and give the order in which they ran."""
        self.turnstile.let_pass(len(self._clients))
        for client in self._clients:
            with client:
                response = http.client.HTTPResponse(client)
                response.begin()
                assert response.status == 200
                response.read()
        return self.turnstile.order[1:]


@pytest.fixture
def turnstile() -> Turnstile:
    return Turnstile()


def test_clients_take_turns_each_in_its_own_order(turnstile: Turnstile) -> None:
    with BridgeThread(turnstile, threads=1) as server:
        queue = Queue(server, turnstile)
        for number in range(4):
            queue.add(f"/a{number}", address="127.0.0.1")
        for number in range(3):
            queue.add(f"/b{number}", address="127.0.0.2")
        queue.add("/c0", address="127.0.0.3")
        assert queue.order() == ["/a0", "/b0", "/c0", "/a1", "/b1", "/a2", "/b2", "/a3"]


def test_two_hundred_requests_of_one_client_delay_another_s_by_one(turnstile: Turnstile) -> None:
    with BridgeThread(turnstile, threads=1) as server:
        queue = Queue(server, turnstile)
        for number in range(200):
            queue.add(f"/many{number}", address="127.0.0.1")
        turnstile.let_pass(3)
        wait_until(lambda: turnstile.order[-1] == "/many2", "one of the many runs")
        wait_until(lambda: len(server.bridge.exchanges.open) == 198, "those before it are answered")
        queue.add("/single", address="127.0.0.2")
        order = queue.order()
        # The very next, behind the one that ran when it came.
        assert order.index("/single") == order.index("/many2") + 1
        assert [path for path in order if path != "/single"] == [f"/many{number}" for number in range(200)]


def test_behind_a_trusted_proxy_the_forwarded_address_counts(turnstile: Turnstile) -> None:
    with BridgeThread(turnstile, threads=1, xheaders=True) as server:
        queue = Queue(server, turnstile)
        for number in range(3):
            queue.add(f"/a{number}", headers="X-Real-IP: 192.0.2.1\r\n")
        queue.add("/b0", headers="X-Forwarded-For: 192.0.2.2\r\n")
        assert queue.order() == ["/a0", "/b0", "/a1", "/a2"]


def test_what_a_client_says_of_itself_does_not_count(turnstile: Turnstile) -> None:
    with BridgeThread(turnstile, threads=1) as server:
        queue = Queue(server, turnstile)
        for number in range(3):
            queue.add(f"/a{number}", headers=f"X-Real-IP: 192.0.2.{number}\r\n")
        queue.add("/b0", address="127.0.0.2")
        assert queue.order() == ["/a0", "/b0", "/a1", "/a2"]


def test_a_client_key_replaces_the_address(turnstile: Turnstile) -> None:
    with BridgeThread(turnstile, threads=1, client_key=lambda headers, address: headers.get("X-Key", "")) as server:
        queue = Queue(server, turnstile)
        for number in range(3):
            queue.add(f"/a{number}", headers="X-Key: a\r\n", address=f"127.0.0.{number + 1}")
        queue.add("/b0", headers="X-Key: b\r\n")
        assert queue.order() == ["/a0", "/b0", "/a1", "/a2"]


def test_a_client_key_that_fails_leaves_the_address(turnstile: Turnstile, caplog: pytest.LogCaptureFixture) -> None:
    with BridgeThread(turnstile, threads=1, client_key=lambda headers, address: headers["X-Key"]) as server:
        queue = Queue(server, turnstile)
        for number in range(2):
            queue.add(f"/a{number}", address="127.0.0.1")
        queue.add("/b0", address="127.0.0.2")
        queue.add("/c0", address="127.0.0.1", headers="X-Key: c\r\n")
        assert queue.order() == ["/a0", "/b0", "/c0", "/a1"]
    # Four requests, one line.
    assert caplog.text.count("client_key failed; using the client's address") == 1 and "KeyError" in caplog.text


def test_lanes_are_fair_each_for_itself_and_no_thread_is_kept_for_anybody(turnstile: Turnstile) -> None:
    with BridgeThread(turnstile, threads=3) as server:
        clients = [server.send(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n") for _ in range(4)]
        # One client alone has all threads.
        wait_until(lambda: len(turnstile.order) == 3, "all threads are taken")
        turnstile.let_pass(4)
        for client in clients:
            with client:
                assert client.recv(100).startswith(b"HTTP/1.1 200 OK")


def test_any_order_of_puts_takes_and_removals_is_served_in_turn() -> None:
    generator = random.Random(2)
    queue: FairQueue[tuple[str, int]] = FairQueue()
    waiting: dict[str, deque[tuple[str, int]]] = defaultdict(deque)
    # How many were served since each client's first waiting item came, or since it was served.
    passed: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for number in range(20_000):
        action = generator.random()
        present = [client for client, items in waiting.items() if items]
        if action < 0.5:
            client = generator.choice("abcdefg")
            item = (client, number)
            if not waiting[client]:
                passed[client].clear()
            waiting[client].append(item)
            queue.put(client, item)
        elif action < 0.65 and present:
            client = generator.choice(present)
            item = generator.choice(waiting[client])
            waiting[client].remove(item)
            assert queue.remove(client, item)
            assert not queue.remove(client, item)
        elif present:
            item = queue.take()
            client = item[0]
            assert item == waiting[client].popleft(), "in order within a client"
            for other in present:
                passed[other][client] += 1
            passed[client].clear()
            waited = [count for other in present if other != client for count in passed[other].values()]
            assert max(waited, default=0) <= 1, "in turn"
        assert len(queue) == sum(map(len, waiting.values()))
    while queue:
        client, _ = item = queue.take()
        assert item == waiting[client].popleft()
    with pytest.raises(IndexError):
        queue.take()
    assert not any(waiting.values())


@pytest.mark.parametrize("clients", [1, 10_000])
def test_the_cost_does_not_grow_with_the_queue(clients: int) -> None:
    def seconds(length: int) -> float:
        """The least that a hundred operations of each kind take with so many items waiting."""
        queue: FairQueue[int] = FairQueue()
        for number in range(length):
            queue.put(str(number % clients), number)
        return min(map(lambda start: time_of(lambda: operate(queue, start)), range(length, length + 2000, 100)))

    def operate(queue: FairQueue[int], start: int) -> None:
        for number in range(start, start + 100):
            queue.put(str(number % clients), number)
            queue.take()
            assert queue.remove(str(number % clients), number)
            queue.put(str(number % clients), number)

    def time_of(function: Callable[[], None]) -> float:
        begin = time.perf_counter()
        function()
        return time.perf_counter() - begin

    # If anything were searched or moved, it would be hundreds of times as much.
    assert seconds(200_000) < 20 * seconds(200)


def test_the_largest_client_is_known_whatever_happens() -> None:
    generator = random.Random(4)
    queue: FairQueue[tuple[str, int]] = FairQueue()
    waiting: dict[str, list[tuple[str, int]]] = {client: [] for client in "abcde"}
    for number in range(20_000):
        client = generator.choice("aabbbcde")
        action = generator.random()
        item = (client, number)
        most = max(map(len, waiting.values()))
        assert queue.is_largest(client) == (len(waiting[client]) + 1 >= most)
        if action < 0.5:
            waiting[client].append(item)
            queue.put(client, item)
        elif not most:
            with pytest.raises(IndexError):
                queue.newest_of_largest()
        elif action < 0.65:
            client, _ = item = queue.newest_of_largest()
            assert len(waiting[client]) == most and waiting[client].pop() == item
            assert queue.remove(client, item)
        elif action < 0.85:
            client, _ = item = queue.take()
            waiting[client].remove(item)
        elif waiting[client]:
            item = generator.choice(waiting[client])
            waiting[client].remove(item)
            assert queue.remove(client, item)
        assert len(queue) == sum(map(len, waiting.values()))


@pytest.mark.parametrize(
    ("address", "client"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::1", "2001:db8:1:2::/64"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
        ("not:an:address", "not:an:address"),
    ],
)
def test_a_network_of_one_host_is_one_client(address: str, client: str) -> None:
    assert client_of(address) == client


def test_ipv6_addresses_of_one_network_take_turns_as_one(turnstile: Turnstile) -> None:
    with BridgeThread(turnstile, threads=1, xheaders=True) as server:
        queue = Queue(server, turnstile)
        for number in range(3):
            queue.add(f"/a{number}", headers=f"X-Real-IP: 2001:db8::{number}\r\n")
        queue.add("/b0", headers="X-Real-IP: 2001:db8:0:1::1\r\n")
        assert queue.order() == ["/a0", "/b0", "/a1", "/a2"]


GET = "GET {} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
POST = "POST {} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nConnection: close\r\n\r\n"


def send(server: BridgeThread, address: str, request: str) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", server.port), 20, source_address=(address, 0))
    client.sendall(request.encode())
    return client


def status_of(client: socket.socket) -> int:
    with client:
        response = http.client.HTTPResponse(client)
        response.begin()
        return response.status


def test_one_client_with_many_requests_makes_no_other_s_be_refused(turnstile: Turnstile) -> None:
    with BridgeThread(turnstile, threads=2, queue=60) as server:
        greedy = [send(server, "127.0.0.9", GET.format("/greedy")) for _ in range(300)]
        wait_until(lambda: server.bridge.lanes[-1].queued == 60, "the queue is full")
        wait_until(lambda: len(server.bridge.exchanges.open) == 62, "what is too much is refused")
        polite = [
            send(server, f"127.0.0.{number + 10}", request.format("/polite"))
            for number in range(12)
            for request in (GET, GET, POST)
        ]
        # Half of them, whose bodies come only now, have been told nothing yet.
        wait_until(lambda: len(server.bridge.exchanges.open) == 62 + 12, "all have arrived")
        for client in polite[2::3]:
            client.sendall(b".")
        wait_until(lambda: len(server.bridge.exchanges.open) == 62, "the greedy one's have made room")
        turnstile.let_pass(62)
        assert [status_of(client) for client in polite] == [200] * 36
        statuses = [status_of(client) for client in greedy]
        assert statuses.count(200) == 62 - 36 and statuses.count(503) == 300 - 26
        # The newest were refused, so that its requests are still served in their order.
        assert statuses == sorted(statuses)


def test_a_body_that_comes_from_the_largest_client_is_refused_before_and_after(turnstile: Turnstile) -> None:
    with BridgeThread(turnstile, threads=1, queue=2) as server:
        arriving = send(server, "127.0.0.1", POST.format("/late"))
        wait_until(lambda: len(server.bridge.exchanges.open) == 1, "its head is admitted")
        running = [send(server, "127.0.0.1", GET.format("/early")) for _ in range(3)]
        wait_until(lambda: server.bridge.lanes[-1].queued == 2, "the queue is full")
        assert status_of(send(server, "127.0.0.1", POST.format("/unread"))) == 503
        arriving.sendall(b".")
        assert status_of(arriving) == 503
        turnstile.let_pass(3)
        assert [status_of(client) for client in running] == [200] * 3
