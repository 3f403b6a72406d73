"""The operators' port of one process: its sockets, and what is behind its addresses. Loop side."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import quote

from tornado.httpserver import HTTPServer
from tornado.iostream import IOStream

from threadbridge.admin.access import Access
from threadbridge.admin.events import Events
from threadbridge.admin.handlers import local_application, public_application
from threadbridge.admin.health import DatabaseHealth, Readiness, readiness
from threadbridge.admin.peer_answer import MalformedAnswer, parse_stopped
from threadbridge.admin.peer_proof import PeerProof
from threadbridge.admin.peers import READINESS_LIMIT, Peers, answers_of, processes_of, readiness_of
from threadbridge.admin.snapshot import snapshot
from threadbridge.admin.throttle import Throttle
from threadbridge.admin.view import view
from threadbridge.common import forks
from threadbridge.common.repeated_log import RepeatedLog
from threadbridge.common.threads import stacks
from threadbridge.http.accepting import Acceptor
from threadbridge.loop.bridge import Bridge
from threadbridge.settings.table import Settings
from threadbridge.sockets.inheritance import Inheritance
from threadbridge.sockets.listeners import bind_admin, describe
from threadbridge.telemetry.history import History

logger = logging.getLogger("threadbridge")

# Nothing that operators send is large.
LARGEST_REQUEST = 64 * 1024
# Connections at the port, pages that are watched included; clients' connections do not count.
MAX_CONNECTIONS = 100
# Seconds that those who watch may take to see that it is over.
CLOSE_TIME = 1.0
# Seconds for which a connection may have the last file descriptor: time for one answer, then it is another's turn.
LAST_DESCRIPTOR_TIME = 1.0


class _Server(HTTPServer):
    """Closes at once what comes beyond `MAX_CONNECTIONS`: whoever fills the port takes no descriptors from clients.

    Answers one connection at a time when there are no descriptors left.
    """

    _log = RepeatedLog(logger)

    def initialize(self, *arguments: Any, **parameters: Any) -> None:
        """See `tornado.httpserver.HTTPServer`."""
        super().initialize(*arguments, **parameters)
        self._acceptors: dict[socket.socket, Acceptor] = {}

    def add_sockets(self, sockets: Iterable[socket.socket]) -> None:
        """See `tornado.tcpserver.TCPServer`."""
        for listener in sockets:
            forks.listens(listener)
            self._acceptors[listener] = Acceptor(listener, self._serve, self._serve_briefly, leaves=0)

    def stop(self) -> None:
        """See `tornado.tcpserver.TCPServer`."""
        for listener, acceptor in self._acceptors.items():
            acceptor.close()
            listener.close()
        self._acceptors.clear()

    def _serve(self, connection: socket.socket, address: Any) -> None:
        self.handle_stream(IOStream(connection), address)

    def _serve_briefly(self, connection: socket.socket, address: Any) -> None:
        stream = IOStream(connection)
        self.handle_stream(stream, address)
        asyncio.get_running_loop().call_later(LAST_DESCRIPTOR_TIME, stream.close)

    def handle_stream(self, stream: IOStream, address: Any) -> None:
        """See `tornado.httpserver.HTTPServer`."""
        if len(self._connections) < MAX_CONNECTIONS:
            super().handle_stream(stream, address)
        else:
            self._log.log(logging.WARNING, "the operators' port has %d connections: closed one more", MAX_CONNECTIONS)
            stream.close()


class AdminServer:
    """Shows operators what a bridge does, at a port of its own, and lets them stop requests.

    :param settings: those that begin with ``admin_``, ``run_directory`` and ``pool``.
    :param inheritance: what this process has from its supervisor, if there is one: the sockets, and where the other
        processes are.

    Construct it, `listen`, `start` on the loop, set `draining` when the process is told to stop, `close`. Raises
    ``ValueError`` for settings that cannot be used.
    """

    def __init__(
        self,
        bridge: Bridge,
        settings: Settings,
        inheritance: Inheritance | None = None,
    ) -> None:
        self.bridge = bridge
        self.draining = False
        self._settings = settings
        self._sockets = list(inheritance.admin_listeners) if inheritance is not None else []
        self._is_supervised = inheritance is not None
        access = Access(
            settings["admin_address"],
            settings["admin_token_file"],
            settings["admin_names"],
            settings["trusted_proxies"],
        )
        self.proof = PeerProof(access.token) if access.token else None
        self.peers = Peers(
            settings["admin_peers"],
            inheritance.run_directory if inheritance is not None else settings["run_directory"],
            inheritance.group if inheritance is not None else os.getpid(),
            self.proof,
        )
        access.add_names(self.peers.names)
        self.access = access
        self.throttle = Throttle()
        self.history = History()
        self._database = DatabaseHealth(bridge.guard) if bridge.guard is not None else None
        # What the latest look found; changes are logged.
        self._was_ready = True
        self._ready_log, self._not_ready_log = RepeatedLog(logger), RepeatedLog(logger)
        self.events = Events(self.picture)
        self.where: list[str] = []
        self._servers: list[HTTPServer] = []
        self._unix: tuple[socket.socket, Callable[[], None]] | None = None
        self._key = secrets.token_hex(6)
        self._started = time.time()
        bridge.telemetry.subscribe(self.history.read)

    def listen(self) -> None:
        """Take the address, unless the supervisor has it; raises ``OSError``."""
        if not self._is_supervised:
            self._sockets = bind_admin(self._settings)
        self._unix = self.peers.bind()

    @property
    def address(self) -> str:
        """Where operators reach it; "" if only other processes do."""
        return " and ".join(describe(listener, "http") for listener in self._sockets)

    def start(self, where: Sequence[str]) -> None:
        """Answer from now on; ``where`` are the addresses at which the application is served."""
        self.where = list(where)
        if self._sockets:
            self._serve(public_application(self), self._sockets)
        if self._unix is not None:
            self._serve(local_application(self), [self._unix[0]])

    def _serve(self, application: Any, sockets: list[socket.socket]) -> None:
        server = _Server(
            application, max_body_size=LARGEST_REQUEST, max_header_size=LARGEST_REQUEST, idle_connection_timeout=60
        )
        server.add_sockets(sockets)
        self._servers.append(server)

    def leave_port(self) -> None:
        """Listen no more for operators, so that another process can; those that are connected stay."""
        if self._sockets:
            self._servers[0].stop()

    async def close(self) -> None:
        """Answer nobody any more."""
        if self._unix is not None:
            # While this process still listens, nobody takes the file for one that was left behind.
            self._unix[1]()
        self.events.close()
        self.peers.close()
        for server in self._servers:
            server.stop()
        # Those that watch are told so by the end of their streams.
        closing = [asyncio.create_task(server.close_all_connections()) for server in self._servers]
        if closing:
            await asyncio.wait(closing, timeout=CLOSE_TIME)

    def own(self) -> dict[str, Any]:
        """What this process does."""
        return {
            "key": self._key,
            "pid": os.getpid(),
            "where": self.where,
            "admin": self.address,
            "started": self._started,
            "draining": self.draining,
            **snapshot(self.bridge, self.history),
        }

    async def everything(self) -> dict[str, Any]:
        """What all processes do, this one and its peers."""
        others, silent = await processes_of(self.peers.all())
        return view(self.own(), others, silent)

    async def on_this_host(self) -> list[dict[str, Any]]:
        """What this process and those in the run directory do."""
        others, _ = await processes_of(self.peers.on_this_host())
        return [self.own(), *others]

    async def picture(self) -> bytes:
        """The same, as a server-sent event."""
        return b"data: " + json.dumps(await self.everything(), separators=(",", ":")).encode() + b"\n\n"

    async def own_metrics(self) -> bytes:
        """This process's metrics, in Prometheus' text format."""
        # Only now: a server that nobody measures needs no client of Prometheus.
        from threadbridge.admin.metrics import exposition

        found = await self.readiness(asks_database=False)
        # To be about to end is no fault.
        return exposition(self.bridge, found.ready or found.draining)

    async def metrics(self) -> bytes:
        """Those of all processes that serve together, added up."""
        from threadbridge.admin.metrics_merge import merge

        peers = self.peers.on_this_host(own_group=True)
        own, others = await asyncio.gather(
            self.own_metrics(), answers_of(peers, "/local/metrics", limit=READINESS_LIMIT)
        )
        return merge([own, *(answer.body for answer in others)]) if others else own

    async def readiness(self, asks_database: bool) -> Readiness:
        """Whether requests should be sent to this process."""
        found = await readiness(self.bridge, self._database, self.draining, asks_database)
        if not found.draining and found.ready != self._was_ready:
            self._was_ready = found.ready
            if found.ready:
                self._ready_log.log(logging.WARNING, "ready again")
            else:
                findings = "; ".join(found.findings)
                self._not_ready_log.log(logging.ERROR, "not ready, as /readyz says from now on: %s", findings)
        return found

    async def readiness_of_all(self, asks_database: bool) -> list[tuple[int, Readiness]]:
        """The same of all processes that serve together, with their pids; one that does not answer is not ready."""
        peers = self.peers.on_this_host(own_group=True)
        own, *others = await asyncio.gather(
            self.readiness(asks_database), *(readiness_of(peer, asks_database) for peer in peers)
        )
        found = [(os.getpid(), own), *((peer.pid, other) for peer, other in zip(peers, others, strict=True))]
        return [(pid, readiness) for pid, readiness in found if readiness is not None]

    def stacks(self) -> str:
        """What each thread of this process does, its workers first, each with the request that it serves."""
        serving = {exchange.thread_id: exchange for exchange in self.bridge.exchanges if not exchange.worker_is_done}
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        parts = [f"Process {os.getpid()}, {' and '.join(self.where)}. Innermost calls first.\n"]
        for number, calls in sorted(stacks().items(), key=lambda stack: (stack[0] not in serving, stack[0])):
            exchange = serving.get(number)
            line = exchange and f": request {exchange.id}, {exchange.start_line.method} {exchange.start_line.path}"
            parts.append(f"{names.get(number, f'thread {number}')}{line or ''}\n{calls.rstrip()}\n")
        return "\n".join(parts)

    def stop_own(self, name: str, operator: str) -> int:
        """Stop the request of this process with this key, or those with this id; how many there were.

        :param operator: who wants that, for the log.
        """
        process, _, key = name.partition("-")
        is_own = process == self._key
        found = [each for each in self.bridge.exchanges if (is_own and each.key == key) or each.id == name]
        for exchange in found:
            line = exchange.start_line
            logger.warning(
                "request %s: stopped by an operator (%s): %s %s", exchange.id, operator, line.method, line.path
            )
            self.bridge.stop(exchange)
        return len(found)

    async def stop_elsewhere(self, name: str, operator: str, *, named: bool) -> int:
        """Have the peers stop a request; how many they had. ``named``: also those that are named by address."""
        peers = self.peers.all() if named else self.peers.on_this_host()
        path = f"/local/requests/{quote(name, safe='')}/cancel?operator={quote(operator, safe='')}"
        stopped = 0
        for answer in await answers_of(peers, path, "POST"):
            # One whose answer makes no sense has stopped nothing, as far as is known.
            with suppress(MalformedAnswer):
                stopped += parse_stopped(answer.body)
        return stopped
