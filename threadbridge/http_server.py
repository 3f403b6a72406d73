"""Tornado's `HTTPServer` with this package's HTTP/1.1 connection, time limits and draining."""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import Any

from tornado.httpserver import HTTPServer as TornadoHTTPServer
from tornado.httpserver import _HTTPRequestContext
from tornado.iostream import IOStream
from tornado.netutil import ssl_wrap_socket

from threadbridge.bridge import Bridge
from threadbridge.http1 import HTTP1Connection, Limits
from threadbridge.push_stream import PushSSLStream, PushStream

logger = logging.getLogger("threadbridge")

# Time limits are kept to about this many seconds: one look at all connections costs less than a timer for each.
SWEEP_INTERVAL = 1.0
# How long idle connections stay open when the server drains: a request that a proxy has just sent is still answered.
DRAIN_LINGER = 1.0


class HTTPServer(TornadoHTTPServer):
    """An HTTP/1.1 server: Tornado's, but stricter in what it accepts, and with a way to stop that loses no request.

    :param request_callback: as for `tornado.httpserver.HTTPServer`: a `Bridge`, a `RuleRouter`, a
        `tornado.web.Application`.
    :param limits: sizes and times that clients must keep to.

    Of Tornado's other parameters ``ssl_options``, ``xheaders``, ``protocol`` and ``trusted_downstream`` have their
    meaning. Loop side.
    """

    def initialize(  # type: ignore[override]
        self, request_callback: Any, limits: Limits | None = None, **parameters: Any
    ) -> None:
        """Called by the constructor; see the class."""
        # A worker's head of at most one read may wait behind the request that is being answered.
        super().initialize(request_callback, max_buffer_size=1024 * 1024, **parameters)
        if isinstance(request_callback, Bridge):
            request_callback.servers.append(self)
            if not self.xheaders:
                # Nothing is to be done in between.
                self.start_request = request_callback.start_request  # type: ignore[method-assign]
        self.limits = limits or Limits()
        self.draining = False
        self._open: set[HTTP1Connection] = set()
        self._listeners: list[socket.socket] = []
        self._all_closed = asyncio.Event()
        self._sweeping: asyncio.TimerHandle | None = None

    def add_sockets(self, sockets: Any) -> None:
        """Listen on these sockets."""
        sockets = list(sockets)
        self._listeners += sockets
        super().add_sockets(sockets)

    def _handle_connection(self, connection: socket.socket, address: Any) -> None:
        """As Tornado's, but with this package's kind of stream."""
        stream: PushStream
        try:
            if self.ssl_options is None:
                stream = PushStream(connection, max_buffer_size=self.max_buffer_size)
            else:
                wrapped = ssl_wrap_socket(connection, self.ssl_options, server_side=True, do_handshake_on_connect=False)
                stream = PushSSLStream(wrapped, max_buffer_size=self.max_buffer_size)
        except OSError as error:
            logger.info("a client from %s left before it was served: %s", address, error)
            connection.close()
            return
        self.handle_stream(stream, address)

    def handle_stream(self, stream: IOStream, address: Any) -> None:
        """Serve a connection that has been accepted."""
        assert isinstance(stream, PushStream)
        # A stream's next piece must not wait until the client has acknowledged the last one: that takes it 40 ms.
        stream.set_nodelay(True)
        context = _HTTPRequestContext(stream, address, self.protocol, self.trusted_downstream)
        self._all_closed.clear()
        self._open.add(HTTP1Connection(stream, context, self))
        if self._sweeping is None:
            self._sweep()

    def on_close(self, server_conn: object) -> None:
        """Forget a connection; called by it when it is closed or detached."""
        assert isinstance(server_conn, HTTP1Connection)
        self._open.discard(server_conn)
        if not self._open:
            self._all_closed.set()

    def refused(self, context: Any, request_line: str, status: int, sent: int) -> None:
        """Tell a `Bridge` of a request that was refused before it began; called by its connection."""
        if isinstance(self.request_callback, Bridge):
            self.request_callback.refused(context, request_line, status, sent)

    @property
    def connections(self) -> int:
        """How many clients' connections are open."""
        return len(self._open)

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        for connection in [connection for connection in self._open if connection.deadline <= now]:
            connection.expire()
        self._sweeping = loop.call_later(SWEEP_INTERVAL, self._sweep) if self._open else None

    def stop(self) -> None:
        """Listen no more. Clients whose connection the kernel has already made are served."""
        for listener in self._listeners:
            self._accept_waiting(listener)
        self._listeners.clear()
        super().stop()

    def _accept_waiting(self, listener: socket.socket) -> None:
        while True:
            try:
                client, address = listener.accept()
            except OSError:
                # BlockingIOError: none is waiting; any other: none can be had.
                return
            self._handle_connection(client, address)

    async def drain(self) -> None:
        """Answer what has arrived or is about to, then close; returns when every connection is closed.

        Responses carry ``Connection: close`` from now on. Connections that are idle stay open for `DRAIN_LINGER`
        seconds.
        """
        self.draining = True
        if self._open:
            await asyncio.sleep(DRAIN_LINGER)
        for connection in [connection for connection in self._open if connection.idle]:
            connection.close()
        if self._open:
            await self._all_closed.wait()

    async def close_all_connections(self) -> None:
        """Close every connection at once, whatever it is doing; requests end as if their clients had left."""
        for connection in list(self._open):
            connection.stream.close()
        if self._open:
            await self._all_closed.wait()
