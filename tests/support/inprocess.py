"""A bridge in this very process, on a loop in a thread of its own, for tests that look at both its sides."""

from __future__ import annotations

import asyncio
import http.client
import socket
import struct
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from tornado.httpserver import HTTPServer as TornadoHTTPServer
from tornado.netutil import bind_sockets

from threadbridge import Bridge, HTTPServer, Lane
from threadbridge.crossing.schedule import Job


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 30) -> None:
    """Return as soon as the condition holds; fail when it does not within the bound, which is for loaded machines."""
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up, f"not within {seconds} s: {what}"
        time.sleep(0.005)


def queue_job(lane: Lane, job: Job) -> None:
    """Have the lane run this, as a bridge does."""
    lane.put(job)
    lane.wake()


def reset(client: socket.socket) -> None:
    """Leave by a reset: a client that only closes its socket may still read, for all that a server can tell."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


class BridgeThread:
    """``with BridgeThread(app, threads=2) as server:`` serves ``app`` at ``server.port`` inside the block."""

    def __init__(
        self,
        application: WSGIApplication,
        make_server: Callable[[Bridge], TornadoHTTPServer] = HTTPServer,
        **parameters: Any,
    ) -> None:
        self.bridge = Bridge(application, **parameters)
        self._make_server = make_server
        [self._socket] = bind_sockets(0, "127.0.0.1")
        self.port: int = self._socket.getsockname()[1]
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))

    async def _serve(self) -> None:
        self._stop = asyncio.Event()
        self.loop = asyncio.get_running_loop()
        server = self._make_server(self.bridge)
        server.add_sockets([self._socket])
        self._ready.set()
        await self._stop.wait()
        server.stop()
        await server.close_all_connections()
        self.bridge.close()

    def __enter__(self) -> BridgeThread:
        self._thread.start()
        assert self._ready.wait(30)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self.bridge.join()

    def connect(self) -> socket.socket:
        """A connected socket."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)

    def send(self, request: bytes) -> socket.socket:
        """A connected socket on which these bytes have been sent."""
        client = self.connect()
        client.sendall(request)
        return client

    def exchange(self, request: bytes) -> bytes:
        """Send these bytes and give all that comes back until the server closes the connection."""
        with self.send(request) as client:
            received = b""
            while part := client.recv(65536):
                received += part
            return received

    def request(
        self, method: str = "GET", path: str = "/", body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[http.client.HTTPResponse, bytes]:
        """Send one request on a connection of its own; the response and its whole body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request(method, path, body=body, headers=headers or {})
            response = connection.getresponse()
            return response, response.read()
        finally:
            connection.close()


def assert_leaving_client_is_noticed(make_server: Callable[[Bridge], TornadoHTTPServer]) -> None:
    """A client that leaves ends its request, and its thread is free once the application has returned."""
    gate, entered = threading.Event(), threading.Event()

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        entered.set()
        assert gate.wait(20)
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"done"]

    with BridgeThread(app, make_server, threads=1) as server:
        client = server.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert entered.wait(30)
        client.close()
        wait_until(lambda: not server.bridge.exchanges.open, "the client is seen to have left")
        gate.set()
        wait_until(lambda: server.bridge.lanes[-1].busy == 0, "the thread is free")
