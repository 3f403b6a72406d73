"""Connections without TLS: what a detached stream takes along, and what an idle one takes."""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import ExitStack
from pathlib import Path

import pytest

from benchmarks.subject import footprint
from tests.support.processes import ROOT, Frontend
from threadbridge.http.socket_stream import SocketStream

APPLICATION = """
def app(environ, start_response):
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]
"""
REQUEST = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


def test_a_detached_stream_sends_what_waits_and_receives_what_comes() -> None:
    sent = os.urandom(3_000_000)

    async def detach() -> bytes:
        ours, peer = socket.socketpair()
        peer.setblocking(False)
        stream = SocketStream(ours, asyncio.get_running_loop())
        stream.receive(lambda data: pytest.fail("it was detached"))
        stream.watch()
        written = stream.send((sent[:1000], sent[1000:]))
        assert written is not None and stream.writing()
        detached = stream.detach()
        await asyncio.wait_for(written, 30)
        assert stream.closed() and not detached.closed()
        received = b""
        while len(received) < len(sent):
            received += await asyncio.get_running_loop().sock_recv(peer, 1_000_000)
        assert received == sent
        await asyncio.get_running_loop().sock_sendall(peer, b"hello")
        with peer:
            answer = await detached.read_bytes(5)
        detached.close()
        return bytes(answer)

    assert asyncio.run(detach()) == b"hello"


def test_an_idle_connection_takes_little_memory(tmp_path: Path) -> None:
    (tmp_path / "small.py").write_text(APPLICATION)
    command = ("-m", "threadbridge", "small:app", "--pool=none", "--threads=2", "--port={port}", "--access_log=false")
    count = 400

    def connect(clients: ExitStack, port: int) -> None:
        for _ in range(count):
            client = clients.enter_context(socket.create_connection(("127.0.0.1", port), timeout=30))
            client.sendall(REQUEST)
            assert client.recv(4096).endswith(b"ok")

    environment = {"PYTHONPATH": f"{ROOT}:{tmp_path}"}
    limits = ("--max_connections=3000", "--max_connections_per_client=3000")
    with Frontend((*command, *limits), env=environment) as server, ExitStack() as clients:
        # What many connections at once need is made now.
        connect(clients, server.port)
        before = footprint(server.process.pid).anonymous
        connect(clients, server.port)
        connect(clients, server.port)
        taken = (footprint(server.process.pid).anonymous - before) / (2 * count)
    # Compiled, it is 2 kB; an `IOStream` alone took more than this.
    assert taken < 4096
