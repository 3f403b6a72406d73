"""The operators' port of one process, and the port of HAProxy's agent-check: their sockets and servers."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from tornado.httpserver import HTTPServer
from tornado.iostream import IOStream
from tornado.netutil import ssl_wrap_socket

from threadbridge.admin.access import Access
from threadbridge.admin.agent import Agent
from threadbridge.admin.console import Console
from threadbridge.admin.frontends import Frontends
from threadbridge.admin.handlers import application
from threadbridge.admin.tls import Tls
from threadbridge.common import forks
from threadbridge.common.repeated_log import RepeatedLog
from threadbridge.http.accepting import Acceptor
from threadbridge.http.stream import QuietSSLStream
from threadbridge.loop.bridge import Bridge
from threadbridge.settings.table import Settings
from threadbridge.sockets.inheritance import Inheritance
from threadbridge.sockets.listeners import bind_admin, bind_agent, describe

logger = logging.getLogger("threadbridge")

# Bytes of a request's head, and of its body: operators send nothing large.
LARGEST_REQUEST = 64 * 1024
# Connections at the port, open pages included; more would take descriptors from the application's clients.
MAX_CONNECTIONS = 100
# Seconds to wait for open pages to see the end of their streams, and then for the connections to close.
CLOSE_TIME = 1.0
# Seconds for which a connection may hold the last file descriptor: time for one answer.
LAST_DESCRIPTOR_TIME = 1.0


class _LimitedServer(HTTPServer):
    """Closes connections beyond `MAX_CONNECTIONS` at once; without free descriptors, answers one at a time."""

    _log = RepeatedLog(logger)
    tls: Tls | None = None

    def add_sockets(self, sockets: Iterable[socket.socket]) -> None:
        self._acceptors = {}
        for listener in sockets:
            forks.listens(listener)
            self._acceptors[listener] = Acceptor(listener, self._serve, self._serve_briefly, leaves=0)

    def stop(self) -> None:
        while self._acceptors:
            listener, acceptor = self._acceptors.popitem()
            acceptor.close()
            listener.close()

    def _serve(self, connection: socket.socket, address: Any) -> None:
        self._stream(connection, address)

    def _stream(self, connection: socket.socket, address: Any) -> IOStream | None:
        context = self.tls.server() if self.tls is not None else None
        if context is None:
            stream = IOStream(connection)
        else:
            try:
                wrapped = ssl_wrap_socket(connection, context, server_side=True, do_handshake_on_connect=False)
            except OSError:
                # The client has left.
                connection.close()
                return None
            stream = QuietSSLStream(wrapped)
        self.handle_stream(stream, address)
        return stream

    def _serve_briefly(self, connection: socket.socket, address: Any) -> None:
        stream = self._stream(connection, address)
        if stream is not None:
            asyncio.get_running_loop().call_later(LAST_DESCRIPTOR_TIME, stream.close)

    def handle_stream(self, stream: IOStream, address: Any) -> None:
        if len(self._connections) < MAX_CONNECTIONS:
            super().handle_stream(stream, address)
        else:
            self._log.log(logging.WARNING, "the operators' port has %d connections: closed one more", MAX_CONNECTIONS)
            stream.close()


class AdminServer:
    """Serves the operators' port of a bridge, the Unix socket by which processes of this host ask it, and the agent.

    Raises ``ValueError`` for unusable settings: ``admin_...``, ``run_directory`` or ``trusted_proxies``.
    """

    def __init__(self, bridge: Bridge, settings: Settings, inheritance: Inheritance | None = None) -> None:
        self._settings = settings
        self._inheritance = inheritance
        self.sockets: Sequence[socket.socket] = ()
        self._agent_sockets: Sequence[socket.socket] = ()
        self._access = Access(
            settings["admin_address"],
            settings["admin_token_file"],
            settings["admin_names"],
            settings["trusted_proxies"],
        )
        self._tls = Tls(settings["admin_certfile"], settings["admin_keyfile"], settings["admin_cafile"])
        self.frontends = Frontends(
            settings["admin_peers"],
            inheritance.run_directory if inheritance is not None else settings["run_directory"],
            inheritance.group if inheritance is not None else os.getpid(),
            self._access.proof,
            self._tls,
        )
        self._access.names.update(self.frontends.names)
        self.console = Console(bridge, self.frontends)
        if inheritance is not None:
            self.console.supervision = inheritance.supervision_reader()
        self._servers: list[HTTPServer] = []
        self._unix: tuple[socket.socket, Callable[[], None]] | None = None
        self._agent: Agent | None = None

    def listen(self, kept: Sequence[socket.socket] = ()) -> None:
        """Bind the addresses, unless the supervisor has done so, or sockets were kept; raises ``OSError``."""
        inherited = self._inheritance
        self.sockets = (kept or bind_admin(self._settings)) if inherited is None else inherited.admin_listeners
        self._agent_sockets = bind_agent(self._settings) if inherited is None else inherited.agent_listeners
        self._unix = self.frontends.bind()

    @property
    def address(self) -> str:
        """The URL at which operators reach this process; "" if only other processes do."""
        return " and ".join(describe(listener, self._tls.scheme) for listener in self.sockets)

    def start(self, addresses: Sequence[str]) -> None:
        """Start to serve; the addresses are those of the application."""
        self.console.addresses = addresses
        self.console.admin_address = self.address
        if self.sockets:
            self._serve(self.sockets, is_local=False)
        if self._unix is not None:
            self._serve([self._unix[0]], is_local=True)
        if self._agent_sockets:
            self._agent = Agent(self.console, self._agent_sockets)

    def _serve(self, sockets: Sequence[socket.socket], *, is_local: bool) -> None:
        server = _LimitedServer(
            application(self.console, self._access, is_local=is_local),
            max_body_size=LARGEST_REQUEST,
            max_header_size=LARGEST_REQUEST,
            idle_connection_timeout=60,
        )
        if not is_local:
            server.tls = self._tls
        server.add_sockets(sockets)
        self._servers.append(server)

    def drain(self) -> None:
        """Report from now on that this process is about to end."""
        self.console.draining = True

    def leave_port(self) -> None:
        """Stop listening for operators and the agent-check, so that another process can; connections stay open."""
        if self.sockets:
            self._servers[0].stop()
        if self._agent is not None:
            self._agent.close()

    async def close(self) -> None:
        """Stop serving, and close all connections."""
        if self._unix is not None:
            # First, while this process still listens: nobody can mistake the socket for a stale one.
            self._unix[1]()
        for server in self._servers:
            server.stop()
        if self._agent is not None:
            self._agent.close()
        await self.console.close(CLOSE_TIME)
        closing = [asyncio.create_task(server.close_all_connections()) for server in self._servers]
        if closing:
            await asyncio.wait(closing, timeout=CLOSE_TIME)
