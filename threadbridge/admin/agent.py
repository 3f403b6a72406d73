"""Answers HAProxy's agent-check: whether this server should get requests, and how many."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from threadbridge.admin.console import Console
from threadbridge.admin.health import Readiness, weight_of
from threadbridge.common import forks
from threadbridge.common.repeated_log import RepeatedLog
from threadbridge.http.accepting import Acceptor

logger = logging.getLogger("threadbridge")

# Connections at a time; when one more comes, the oldest is closed. HAProxy opens one every two seconds.
MAX_CONNECTIONS = 20
# Seconds that a client has to close its side after the answer.
LINGER = 1.0
# Characters of the reason, which HAProxy shows on its statistics page.
LONGEST_REASON = 100


class Agent:
    """Sends a line to everybody who connects, whatever they send, and closes the connection. Loop side.

    The line is for all processes that serve together, as they share the application's port:

    - ``up 37%``: send them 37 % of their usual share;
    - ``up 0%``: all are about to end. It has the effect of ``drain``, but ends by itself with the next line: ``drain``
      would last until somebody sends ``ready``, and that would also cancel what an operator has told HAProxy to do;
    - ``down`` and a reason: ``/readyz`` says 503.

    HAProxy's documentation, "agent-check": https://docs.haproxy.org/2.6/configuration.html#5.2-agent-check
    """

    _displaced = RepeatedLog(logger)

    def __init__(self, console: Console, listeners: Sequence[socket.socket]) -> None:
        self._console = console
        # The oldest first.
        self._answering: dict[asyncio.Task[None], None] = {}
        self._line: asyncio.Task[bytes] | None = None
        self._acceptors = {}
        for listener in listeners:
            forks.listens(listener)
            self._acceptors[listener] = Acceptor(listener, self._accept, self._accept, leaves=0)

    def _accept(self, connection: socket.socket, address: Any) -> None:
        if len(self._answering) >= MAX_CONNECTIONS:
            self._displaced.log(
                logging.WARNING, "agent_port has %d connections: closed the oldest for another", MAX_CONNECTIONS
            )
            oldest = next(iter(self._answering))
            del self._answering[oldest]
            oldest.cancel()
        connection.setblocking(False)
        task = asyncio.create_task(self._answer(connection))
        self._answering[task] = None
        task.add_done_callback(lambda task: self._answering.pop(task, None))

    async def _answer(self, connection: socket.socket) -> None:
        with connection, suppress(OSError, TimeoutError):
            if self._line is None or self._line.done():
                self._line = asyncio.create_task(self._make_line())
            # It is for the others who wait for it, too.
            line = await asyncio.shield(self._line)
            # So few bytes fit into the buffer of a new connection.
            connection.send(line)
            connection.shutdown(socket.SHUT_WR)
            # If bytes of the client's were left unread, closing would be a reset, which may overtake the line.
            async with asyncio.timeout(LINGER):
                while await asyncio.get_running_loop().sock_recv(connection, 4096):
                    pass

    async def _make_line(self) -> bytes:
        frontends = self._console.frontends.on_this_host(own_group=True)
        found = [readiness for _, readiness in await self._console.readiness_of_all(frontends, asks_database=False)]
        return line_for(found)

    def close(self) -> None:
        """Stop listening, and close all connections."""
        while self._acceptors:
            listener, acceptor = self._acceptors.popitem()
            acceptor.close()
            listener.close()
        for task in (*self._answering, *([self._line] if self._line is not None else [])):
            task.cancel()


def line_for(processes: Sequence[Readiness]) -> bytes:
    """Return what HAProxy should know of the processes of a server."""
    serving = [found for found in processes if not found.draining]
    reasons = [finding for found in serving if not found.ready for finding in found.findings if not _is_good(finding)]
    if not all(found.ready for found in serving):
        # HAProxy takes all that follows the sharp as a text, up to the end of the line.
        reason = " ".join(reasons)[:LONGEST_REASON].encode("ascii", "replace").decode()
        return f"down #{' '.join(reason.split())}\n".encode()
    return f"up {weight_of(serving)}%\n".encode()


def _is_good(finding: str) -> bool:
    return finding.endswith(": ok")
