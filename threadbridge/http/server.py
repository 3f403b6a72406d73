"""Accepts connections on listening sockets, enforces their limits, and drains them."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from ssl import CERT_NONE, SSLContext
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from tornado.httputil import HTTPConnection, HTTPMessageDelegate
from tornado.netutil import ssl_wrap_socket

from threadbridge.common import forks
from threadbridge.common.repeated_log import RepeatedLog
from threadbridge.http.accepting import RESERVED, Acceptor
from threadbridge.http.connections import Connections
from threadbridge.http.context import RequestContext
from threadbridge.http.limits import DRAIN_LINGER, WORTH_REFUSING, Limits, Memory
from threadbridge.http.parser import LOGGED, HeadReader
from threadbridge.http.request_rules import TOO_MANY_CONNECTIONS, BadRequest
from threadbridge.http.server_connection import HTTP1ServerConnection
from threadbridge.http.socket_stream import SocketStream
from threadbridge.http.stream import PushSSLStream, PushStream

if TYPE_CHECKING:
    from threadbridge.http.proxy_protocol import BadProxyHeader, ProxiedStream, ProxyHeader

logger = logging.getLogger("threadbridge")
_out_of_memory, _failed, _bad_header = RepeatedLog(logger), RepeatedLog(logger), RepeatedLog(logger)

# Time limits are accurate to about this many seconds: one look at all connections costs less than a timer for each.
SWEEP_INTERVAL = 1.0
# Seconds after which it is noticed that the client of a connection with its first request leaves.
WATCHED_AFTER = 0.02
# Seconds for steps (see `run_in_steps`) in each iteration of the loop, unless a single step takes longer.
STEPS_TIME = 0.004

StartRequest: TypeAlias = Callable[[object, HTTPConnection], HTTPMessageDelegate]
Refused: TypeAlias = Callable[[Any, str, int, int], None]


def port_of(sock: socket.SocketType) -> str:
    """Return the port of this end of a socket; "" for a Unix socket, or if the other end has left."""
    try:
        name = sock.getsockname()
    except OSError:
        return ""
    return str(name[1]) if isinstance(name, tuple) else ""


class ConnectionServer:
    """Accepts connections and passes their requests on, until it drains.

    :param start_request: called for each request, see `tornado.httputil.HTTPServerConnectionDelegate`.
    :param refused: called for each request that was refused before it began, see `Telemetry.refused`.
    :param memory: the account of incoming requests; ``unread`` is that of responses. By default new ones.
    :param trusted_proxies: see `TrustedProxies`, which also says what is raised.
    :param proxy_protocol: whether connections of trusted proxies begin with a header that names the client.
    """

    def __init__(
        self,
        start_request: StartRequest,
        refused: Refused,
        limits: Limits,
        ssl_options: SSLContext | None = None,
        memory: Memory | None = None,
        unread: Memory | None = None,
        trusted_proxies: Iterable[str] = (),
        proxy_protocol: bool = False,
    ) -> None:
        self.start_request = start_request
        self.refused = refused
        self.limits = limits
        self.ssl_options: Any = ssl_options
        self.draining = False
        self.memory = memory or Memory()
        self.unread = unread or Memory()
        self.heads = HeadReader()
        # Number of refused connections, by the resource that ran out.
        self.refused_connections = {"descriptors": 0, "connections": 0, "client": 0}
        self.connections = Connections(limits.max_connections, limits.max_connections_per_client, trusted_proxies)
        self._proxy_protocol = proxy_protocol
        self._listeners: dict[socket.socket, Acceptor] = {}
        # The port of all listeners; None if there are several.
        self._port: str | None = None
        self._all_closed = asyncio.Event()
        # New connections whose first request is being answered: that their clients leave is not noticed yet.
        self._unwatched: list[SocketStream] = []
        self._sweeping: asyncio.TimerHandle | None = None
        self._steps: deque[Callable[[], None]] = deque()

    def context_of(self, stream: SocketStream | PushStream, address: Any) -> object:
        """Return the context of a new connection."""
        return RequestContext(address, "http" if self.ssl_options is None else "https", self.own_port(stream))

    def own_port(self, stream: SocketStream | PushStream) -> str:
        """Return the port that a connection's client has connected to; "" on a Unix socket."""
        # Most servers have one, which the kernel need not be asked for.
        return port_of(stream.socket) if self._port is None else self._port

    def add_sockets(self, sockets: Iterable[socket.socket]) -> None:
        """Listen on these sockets."""
        for listener in sockets:
            forks.listens(listener)
            # On Linux, the connections inherit it. Otherwise each piece of a stream waits until the client acknowledges
            # the one before, which takes 40 ms.
            if listener.family != socket.AF_UNIX:
                listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            on_scarce = partial(self._refuse, "descriptors")
            self._listeners[listener] = Acceptor(listener, self._handle_connection, on_scarce, RESERVED)
        ports = {port_of(listener) for listener in self._listeners}
        self._port = ports.pop() if len(ports) == 1 else None

    def _handle_connection(self, connection: socket.socket, address: Any) -> None:
        client = self.connections.client_of(address)
        reason = self.connections.make_room_for(client)
        if reason is not None:
            self._refuse(reason, connection, address)
            return
        # The others are not trusted, so a header would not count.
        is_proxied = self._proxy_protocol and not client
        stream: SocketStream | PushStream
        if self.ssl_options is None and not is_proxied:
            stream = SocketStream(connection, asyncio.get_running_loop())
        else:
            try:
                stream = self._make_stream(connection, is_proxied)
            except OSError as error:
                logger.info("a client from %s left before it was served: %s", address, error)
                connection.close()
                return
        self._all_closed.clear()
        accepted = HTTP1ServerConnection(stream, self.context_of(stream, address), self)
        self.connections.add(accepted, client)
        if isinstance(stream, SocketStream):
            stream.read_now()
            if accepted.is_answering:
                self._watch_soon(stream)
            else:
                stream.watch()
        elif isinstance(stream, PushSSLStream) and self._asks_for_certificates:
            stream.on_handshake = partial(self._on_handshake, accepted, stream)
        if is_proxied:
            proxied = cast("ProxiedStream", stream)
            on_bad = partial(self._on_bad_proxy_header, accepted)
            proxied.expect_header(partial(self._on_proxy_header, accepted), on_bad)
        if self._sweeping is None:
            self._sweep()

    def _watch_soon(self, stream: SocketStream) -> None:
        """Watch a connection that has brought its request, unless it is closed soon, as one for each request is."""
        if not self._unwatched:
            asyncio.get_running_loop().call_later(WATCHED_AFTER, self._watch)
        self._unwatched.append(stream)

    def _watch(self) -> None:
        unwatched, self._unwatched = self._unwatched, []
        for stream in unwatched:
            stream.watch()

    def on_client_left(self) -> None:
        """Find out at once who else has left: the thread that this frees must not run a request of theirs."""
        for stream in self._unwatched:
            stream.read_now()
        self._watch()

    def _make_stream(self, connection: socket.socket, is_proxied: bool) -> PushStream:
        """Make the stream of a connection with TLS or the PROXY protocol's header; raises ``OSError``."""
        plain, over_tls = PushStream, PushSSLStream
        if is_proxied:
            # Not at the top: few servers need it.
            from threadbridge.http.proxy_protocol import ProxiedSSLStream, ProxiedStream

            plain, over_tls = ProxiedStream, ProxiedSSLStream
        if self.ssl_options is None:
            return plain(connection)
        return over_tls(ssl_wrap_socket(connection, self.ssl_options, server_side=True, do_handshake_on_connect=False))

    @property
    def _asks_for_certificates(self) -> bool:
        # Tornado's servers accept a dictionary of arguments, too.
        return isinstance(self.ssl_options, SSLContext) and self.ssl_options.verify_mode != CERT_NONE

    def _on_handshake(self, connection: HTTP1ServerConnection, stream: PushSSLStream) -> None:
        # Not at the top: few servers ask for certificates.
        from threadbridge.http.client_certificate import tls_variables

        context: Any = connection.context
        context.tls_variables = tls_variables(stream.socket)

    def _on_proxy_header(self, connection: HTTP1ServerConnection, header: ProxyHeader) -> None:
        """Take the client that a trusted proxy names for the other end of the connection."""
        if header.client is None:
            return
        protocol = "https" if header.is_tls or self.ssl_options is not None else "http"
        connection.context = RequestContext(header.client, protocol, header.server_port)
        client = self.connections.client_of(header.client)
        # It was counted as the proxy's, without a limit of its own.
        self.connections.discard(connection)
        reason = self.connections.make_room_for(client)
        self.connections.add(connection, client)
        if reason is not None:
            self.refused_connections[reason] += 1
            self._refuse_connection(connection, TOO_MANY_CONNECTIONS)

    def _on_bad_proxy_header(self, connection: HTTP1ServerConnection, error: BadProxyHeader) -> None:
        message = (
            "refused a connection from the trusted proxy %s: %s; with proxy_protocol, all its connections need one"
        )
        _bad_header.log(logging.WARNING, message, connection.context, error)
        self._refuse_connection(connection, BadRequest(400, "expected the PROXY protocol's header"))

    def _refuse_connection(self, connection: HTTP1ServerConnection, error: BadRequest) -> None:
        if self.ssl_options is None:
            connection.refuse(error)
        else:
            # Before the handshake, no answer is possible.
            connection.close()

    def _refuse(self, reason: str, connection: socket.socket, address: Any) -> None:
        self.refused_connections[reason] += 1
        received, sent = b"", 0
        with connection, suppress(OSError):
            connection.setblocking(False)
            # Over TLS no answer is possible.
            if self.ssl_options is None:
                connection.send(TOO_MANY_CONNECTIONS.response)
                sent = len(TOO_MANY_CONNECTIONS.body)
                connection.shutdown(socket.SHUT_WR)
                # Unread bytes would cause a reset, which may overtake the response.
                received = connection.recv(65536)
        context = RequestContext(address, "http" if self.ssl_options is None else "https", "")
        request_line = received[:LOGGED].partition(b"\r\n")[0].decode("latin-1")
        self.refused(context, request_line, 503, sent)

    def on_close(self, server_conn: object) -> None:
        """Forget a connection; called by it when it is closed or detached."""
        assert isinstance(server_conn, HTTP1ServerConnection)
        self.connections.discard(server_conn)
        if not self.connections:
            self._all_closed.set()

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        self.connections.forget()
        for connection in self.connections:
            if connection.deadline <= now:
                self.run_in_steps(connection.expire)
        self._sweeping = loop.call_later(SWEEP_INTERVAL, self._sweep) if self.connections else None

    def make_room(self) -> None:
        """Refuse the largest of the arriving requests, since the account of memory is full."""
        # Some more than needed, so that the next request does not look at all connections again.
        too_much = self.memory.taken - self.memory.size * 7 // 8
        arriving = [connection for connection in self.connections if connection.is_receiving]
        arriving.sort(key=lambda connection: connection.held, reverse=True)
        for connection in arriving:
            if connection.held < WORTH_REFUSING or too_much <= 0:
                return
            # The account does not tell: bytes count until they have been written to the disk.
            too_much -= connection.held
            _out_of_memory.log(
                logging.WARNING,
                "refused the largest incoming request, from %s: incoming requests hold more than memory_size=%d bytes",
                connection.context,
                self.memory.size,
            )
            connection.refuse(BadRequest(503, "the server's memory for incoming requests is full"))

    def stop(self) -> None:
        """Stop listening. Connections that the kernel has already accepted are served."""
        for listener, acceptor in self._listeners.items():
            while True:
                try:
                    connection, address = listener.accept()
                except OSError:
                    # BlockingIOError: none is waiting. Any other: none can be accepted.
                    break
                self._handle_connection(connection, address)
            acceptor.close()
            listener.close()
        self._listeners.clear()

    async def drain(self, linger: float = DRAIN_LINGER) -> None:
        """Answer requests that arrive within ``linger`` seconds; return when every connection is closed.

        Responses from now on carry ``Connection: close``.
        """
        self.draining = True
        if self.connections:
            await asyncio.sleep(linger)
        for connection in list(self.connections):
            connection.drain()
        if self.connections:
            await self._all_closed.wait()

    async def close_all_connections(self) -> None:
        """Close every connection at once; requests end as if their clients had left."""
        for connection in list(self.connections):
            connection.stream.close()
        if self.connections:
            await self._all_closed.wait()

    def run_in_steps(self, step: Callable[[], None]) -> None:
        """Run a step of a larger job soon, a few hundred microseconds long at most; it may add the job's next step.

        Steps of several jobs take turns, for `STEPS_TIME` in each iteration of the loop.
        """
        if not self._steps:
            asyncio.get_running_loop().call_soon(self._run_steps)
        self._steps.append(step)

    def _run_steps(self) -> None:
        until = time.monotonic() + STEPS_TIME
        # A step is removed after it has run, so that a step which it adds does not schedule another `_run_steps`.
        while self._steps and time.monotonic() < until:
            try:
                self._steps[0]()
            except Exception as error:  # noqa: BLE001 - it is logged, and the steps of other connections must run
                _failed.log(logging.ERROR, "a step of a connection's work failed", exc_info=error)
            self._steps.popleft()
        if self._steps:
            asyncio.get_running_loop().call_soon(self._run_steps)
