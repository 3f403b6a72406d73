"""Forwarded requests whose clients leave or are slow, and whose deadline passes: nothing is left of them."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import stat
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from wsgiref.types import StartResponse, WSGIEnvironment

from tests.support.inprocess import BridgeThread, reset, wait_until
from tests.support.processes import free_port
from tests.support.raw_server import OK, RawServer
from tests.support.remote_lane import NEVER_RAN, frontend, hosts, record_of
from threadbridge import current
from threadbridge.common import forks


def test_a_leaving_client_closes_the_connection_to_the_host() -> None:
    gone = threading.Event()

    def hold(client: socket.socket, request: bytes) -> bool:
        if not client.recv(1):
            gone.set()
        return False

    with RawServer(hold) as far, frontend(far.url) as near:
        client = near.send(b"GET /far/ HTTP/1.1\r\nHost: a\r\n\r\n")
        wait_until(lambda: bool(far.requests), "it is there")
        reset(client)
        assert gone.wait(30)
        record = record_of(near)
        assert (record.status, record.ending, record.upstream) == (499, "abandoned", far.url)
        wait_until(lambda: near.bridge.lanes[0].busy == 0, "nothing is left")
        # A client's leaving is no failure of the host.
        assert hosts(near)[0].is_up


def test_a_post_whose_client_leaves_runs_on() -> None:
    go_on = threading.Event()

    def hold(client: socket.socket, request: bytes) -> bool:
        assert go_on.wait(30)
        client.sendall(OK)
        return True

    with RawServer(hold) as far, frontend(far.url) as near:
        client = near.send(b"POST /far/ HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n")
        wait_until(lambda: bool(far.requests), "it is there")
        reset(client)
        assert record_of(near).ending == "abandoned"
        assert (near.bridge.lanes[0].busy, hosts(near)[0].connections) == (1, 1)
        go_on.set()
        wait_until(lambda: near.bridge.lanes[0].busy == 0, "it has ended")
        assert hosts(near)[0].answered == 1
        # The connection is as good as new.
        assert near.request("GET", "/far/")[1] == b"ok" and far.connections == 1


def test_the_deadline_ends_it() -> None:
    def hold(client: socket.socket, request: bytes) -> bool:
        assert client.recv(1) == b""
        return False

    with RawServer(hold) as far, frontend(far.url, deadline=0.3) as near:
        assert near.request("GET", "/far/")[0].status == 504
        assert record_of(near).ending == "expired"
        wait_until(lambda: near.bridge.lanes[0].busy == 0, "the connection is closed")


def test_another_bridge_cancels_even_a_post_when_the_sender_closes_the_connection() -> None:
    entered, cancelled = threading.Event(), threading.Event()

    def wait(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        current().on_cancel(cancelled.set)
        entered.set()
        assert cancelled.wait(20)
        start_response("200 OK", [])
        return []

    with BridgeThread(wait, threads=1, xheaders=True) as far, frontend(f"http://127.0.0.1:{far.port}") as near:
        client = near.send(b"POST /far/ HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n")
        assert entered.wait(30)
        [exchange] = near.bridge.exchanges.open
        near.loop.call_soon_threadsafe(near.bridge.exchanges.stop, exchange)
        assert cancelled.wait(30)
        assert client.recv(65536).startswith(b"HTTP/1.1 504 ")
        client.close()


def test_a_slow_client_holds_up_its_own_response_alone() -> None:
    size = 30_000_000

    def large(environ: WSGIEnvironment, start_response: StartResponse) -> Iterator[bytes]:
        start_response("200 OK", [])
        return (b"x" * 65536 for _ in range(size // 65536))

    with BridgeThread(large, threads=2, memory_size=1_000_000) as far, frontend(f"http://127.0.0.1:{far.port}") as near:
        slow = near.connect()
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.sendall(b"GET /far/ HTTP/1.1\r\nHost: a\r\n\r\n")
        wait_until(lambda: any(each.answered_at for each in near.bridge.exchanges.open), "it has begun")
        assert len(near.request("GET", "/far/")[1]) == size // 65536 * 65536
        # What it has not read is in the kernel, and on the other host.
        assert near.bridge.spool.unread.taken < 300_000
        slow.close()
        wait_until(lambda: near.bridge.lanes[0].busy == 0, "nothing is left")


def test_a_forked_process_does_not_hold_a_connection_whose_client_is_slow() -> None:
    """Otherwise the host would not learn that the client has left."""

    def endless(client: socket.socket, request: bytes) -> bool:
        client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            client.sendall(b"x" * 65536)

    with RawServer(endless) as far, frontend(far.url) as near:
        slow = near.send(b"GET /far/ HTTP/1.1\r\nHost: a\r\n\r\n")
        wait_until(lambda: len(hosts(near)[0]._open) == 1, "it is there")
        [connection] = hosts(near)[0]._open
        wait_until(lambda: connection._stream.paused, "nothing more is read")
        descriptor = connection._stream.descriptor
        # A server that drains has closed its listeners; a fork must not fail because of that.
        listener = socket.create_server(("127.0.0.1", 0))
        forks.listens(listener)
        listener.close()
        child = os.fork()
        if child == 0:
            os._exit(0 if stat.S_ISCHR(os.fstat(descriptor).st_mode) else 1)
        assert os.waitpid(child, 0)[1] == 0
        slow.close()
        wait_until(lambda: near.bridge.lanes[0].busy == 0, "nothing is left")


def test_nothing_is_left_of_clients_and_hosts_that_leave_at_any_moment() -> None:
    chance = random.Random(7)
    calm = threading.Event()

    def moody(client: socket.socket, request: bytes) -> bool:
        mood = 1.0 if calm.is_set() else chance.random()
        if mood < 0.2:
            return False
        if mood < 0.4:
            client.sendall(NEVER_RAN)
            return True
        client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 300000\r\n\r\n" + b"x" * 100_000)
        if mood < 0.5:
            return False
        client.sendall(b"x" * 200_000)
        return True

    with (
        RawServer(moody) as one,
        RawServer(moody) as other,
        frontend(one.url, other.url, f"http://127.0.0.1:{free_port()}") as near,
    ):

        def visit(number: int) -> None:
            size = chance.choice([0, 10, 2_000_000])
            method = chance.choice(["GET", "POST"])
            client = near.send(f"{method} /far/ HTTP/1.1\r\nHost: a\r\nContent-Length: {size}\r\n\r\n".encode())
            mood = chance.random()
            with client, contextlib.suppress(OSError):
                client.sendall(b"x" * (size // 2 if mood < 0.2 else size))
                if mood < 0.7:
                    client.settimeout(0.2)
                    while client.recv(50_000) and chance.random() < 0.8:
                        pass

        with ThreadPoolExecutor(16) as pool:
            list(pool.map(visit, range(400)))
        bridge = near.bridge
        wait_until(lambda: not bridge.exchanges.open and bridge.lanes[0].busy == 0, "all have ended")
        wait_until(
            lambda: bridge.spool.taken == bridge.spool.memory.taken == bridge.spool.unread.taken == 0, "no bytes"
        )
        assert [host.running for host in hosts(near)] == [0, 0, 0]
        assert all(host.connections == len(host._kept) for host in hosts(near))
        calm.set()
        assert near.request("GET", "/far/")[0].status == 200
