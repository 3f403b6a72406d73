"""The connections to other hosts: kept, replaced and closed."""

from __future__ import annotations

import asyncio
import select
import socket
import struct
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
from tornado.iostream import StreamClosedError

from tests.support.inprocess import reset, wait_until
from tests.support.raw_server import OK, RawServer, answering, whole_request
from tests.support.remote_lane import NEVER_RAN, frontend, hosts
from threadbridge import Lane
from threadbridge.http.stream import PushStream
from threadbridge.loop.upstream import KEPT_FOR, Upstream


def test_connections_are_kept_and_a_closed_one_is_replaced_without_a_failure() -> None:
    with RawServer(answering(OK)) as far, frontend(far.url) as near:
        for _ in range(5):
            assert near.request("POST", "/far/", body=b"x")[0].status == 200
        assert far.connections == 1
        [client] = far._clients
        client.shutdown(socket.SHUT_RDWR)
        assert near.request("POST", "/far/", body=b"x")[0].status == 200
        assert (far.connections, len(far.requests)) == (2, 6)


def test_a_kept_connection_that_closes_unnoticed_is_not_used() -> None:
    """The loop has not seen the end yet when it takes the connection."""
    with RawServer(answering(OK)) as far, frontend(far.url) as near:
        assert near.request("POST", "/far/", body=b"x")[0].status == 200
        closed = threading.Event()

        def close() -> None:
            far._clients[0].shutdown(socket.SHUT_RDWR)
            # The kernel has it at once, but the loop is in this callback.
            [connection] = hosts(near)[0]._kept
            wait_until(lambda: not connection.is_usable, "the kernel knows")
            client = near.send(b"POST /far/ HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nConnection: close\r\n\r\nx")
            clients.append(client)
            closed.set()

        clients: list[socket.socket] = []
        near.loop.call_soon_threadsafe(close)
        assert closed.wait(30)
        assert b"200 OK" in clients[0].recv(65536)
        clients[0].close()
        assert len(far.requests) == 2


def test_a_kept_connection_that_takes_not_one_byte_is_replaced() -> None:
    request = b"POST /far/ HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nConnection: close\r\n\r\nx"
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        frontend(f"http://127.0.0.1:{listener.getsockname()[1]}") as near,
    ):
        client = near.send(request)
        first, _ = listener.accept()
        assert whole_request(first)
        first.sendall(OK)
        assert b"200 OK" in client.recv(65536)
        client.close()
        wait_until(lambda: len(hosts(near)[0]._kept) == 1, "it is kept")
        [connection] = hosts(near)[0]._kept
        # The other end leaves its own side open: to look at the connection does not tell.
        near.loop.call_soon_threadsafe(connection._stream.socket.shutdown, socket.SHUT_WR)
        client = near.send(request)
        second, _ = listener.accept()
        assert whole_request(second)
        second.sendall(OK)
        assert b"200 OK" in client.recv(65536)
        assert hosts(near)[0].failed == 0
        for each in (client, first, second):
            each.close()


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("how", ["close", "reset"])
def test_a_kept_connection_that_closes_under_a_request_does_not_run_it_twice(method: str, how: str) -> None:
    """The server may have run it before it closed the connection: nobody can know."""
    count = 0

    def once(client: socket.socket, request: bytes) -> bool:
        nonlocal count
        count += 1
        if count == 1:
            client.sendall(OK)
            return True
        if how == "reset":
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return False

    with RawServer(once) as far, RawServer(answering(NEVER_RAN)) as other, frontend(far.url, other.url) as near:
        statuses = [near.request(method, "/far/")[0].status for _ in range(2)]
        assert sorted(statuses) == [200, 502]
        assert len(far.requests) == 2


def test_bytes_that_nobody_asked_for_end_a_kept_connection() -> None:
    with RawServer(answering(OK)) as far, frontend(far.url) as near:
        near.request("GET", "/far/")
        far._clients[0].sendall(OK)
        wait_until(lambda: hosts(near)[0].connections == 0, "it is closed")
        assert near.request("GET", "/far/")[1] == b"ok"


def test_an_early_answer_ends_the_connection_if_the_request_has_not_been_sent() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        frontend(f"http://127.0.0.1:{listener.getsockname()[1]}") as near,
    ):
        client = near.send(b"POST /far/ HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 20000000\r\n\r\n")
        sender = threading.Thread(target=client.sendall, args=(b"x" * 20_000_000,))
        sender.start()
        far, _ = listener.accept()
        far.recv(1000)
        far.sendall(b"HTTP/1.1 413 Too Much\r\nContent-Length: 3\r\n\r\nno!")
        sender.join()
        assert client.recv(65536).startswith(b"HTTP/1.1 413 Too Much")
        wait_until(lambda: hosts(near)[0].connections == 0, "the connection is closed")
        wait_until(lambda: near.bridge.spool.taken == 0, "the disk is free")
        far.close()
        client.close()


def test_a_write_that_fails_after_a_part_has_been_sent_does_not_say_that_nothing_was() -> None:
    """Otherwise the request would be sent again."""

    class HalfSent(PushStream):
        def _send_at_once(self, pieces: Sequence[bytes | memoryview]) -> int:
            sent = super()._send_at_once(pieces)
            reset(peer)
            poll = select.poll()
            poll.register(self.socket, 0)
            assert poll.poll(10_000)
            return sent

    async def send() -> BaseException | None:
        stream = HalfSent(ours)
        written = stream.send((b"head", *[b"x" * 2_000_000] * 3))
        assert written is not None
        return written.exception()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        ours.setblocking(False)
        peer, _ = listener.accept()
        assert isinstance(asyncio.run(send()), StreamClosedError)


def test_a_closed_connection_that_is_kept_is_forgotten_in_time() -> None:
    with RawServer(answering(OK)) as far, frontend(far.url) as near:
        near.request("GET", "/far/")
        [host] = hosts(near)
        [connection] = host._kept

        async def sweep() -> list[object]:
            connection.close()
            while connection in host._kept:
                await asyncio.sleep(0)
            # As for a request whose client has left while this host connected.
            host.keep(connection)
            connection.idle_since -= KEPT_FOR
            host._sweep()
            return list(host._kept)

        assert asyncio.run_coroutine_threadsafe(sweep(), near.loop).result(10) == []


def test_only_one_request_tries_a_host_that_failed() -> None:
    upstream = Upstream(Lane("far", upstream=["http://r1"]), ThreadPoolExecutor(1))
    [host] = upstream.hosts
    older, trial = object(), object()
    host.begin(older)
    host.has_failed("test")
    assert not upstream.is_up
    wait_until(lambda: upstream.is_up, "it may be tried again")
    host.begin(trial)
    assert not upstream.is_up
    host.end(older)
    assert not upstream.is_up
    host.end(trial)
    assert upstream.is_up and not host.is_up


def test_closing_the_bridge_ends_attempts_to_connect(caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener, ExitStack() as stack:
        # Once its queue is full, it answers no further attempts.
        while True:
            filler = stack.enter_context(socket.socket())
            filler.settimeout(0.2)
            try:
                filler.connect(listener.getsockname())
            except TimeoutError:
                break
        with frontend(f"http://127.0.0.1:{listener.getsockname()[1]}") as near:
            client = near.send(b"GET /far/ HTTP/1.1\r\nHost: a\r\n\r\n")
            wait_until(lambda: bool(near.bridge.forwarding._requests), "it connects")
            [request] = near.bridge.forwarding._requests
        # The loop has ended.
        assert request._connecting is None
        client.close()
    assert caplog.text == ""
