"""Requests at moments that the measurement chooses, on connections that are kept, as a proxy keeps them."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import defaultdict, deque
from collections.abc import Callable
from typing import NamedTuple

from benchmarks.clients import head

NO_ANSWER = 0


class Answer(NamedTuple):
    """When a request was sent, when its whole answer was there, and the status.

    If there was no answer, the status is `NO_ANSWER` and ``answered`` the moment when it was given up.
    """

    path: str
    sent: float
    answered: float
    status: int

    @property
    def seconds(self) -> float:
        return self.answered - self.sent


class Traffic:
    """The clients of one server, each with as many connections as it needs.

    Client N has the address 127.0.0.N, or the one that ``address`` gives.
    """

    def __init__(
        self, port: int, server: str = "127.0.0.1", address: Callable[[int], str] = "127.0.0.{}".format
    ) -> None:
        self._port = port
        self._server = server
        self._address = address
        self._idle: dict[int, deque[tuple[asyncio.StreamReader, asyncio.StreamWriter]]] = defaultdict(deque)

    async def ask(self, path: str, client: int = 1, give_up: float | None = None) -> Answer:
        """Send a request and wait for its answer, no longer than until ``give_up`` on the loop's clock."""
        sent = time.monotonic()
        status = NO_ANSWER
        # A new connection that fails counts as no answer.
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            async with asyncio.timeout_at(give_up):
                status = await self._ask(path, client)
        return Answer(path, sent, time.monotonic(), status)

    async def _ask(self, path: str, client: int) -> int:
        idle = self._idle[client]
        while idle:
            # The server may have closed it meanwhile.
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                return await self._exchange(path, client, *idle.pop())
        connection = await asyncio.open_connection(self._server, self._port, local_addr=(self._address(client), 0))
        return await self._exchange(path, client, *connection)

    async def _exchange(
        self, path: str, client: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> int:
        keep = False
        try:
            writer.write(head(path))
            lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower().split("\r\n")
            fields = dict(line.split(": ", 1) for line in lines[1:] if ": " in line)
            if "content-length" in fields:
                await reader.readexactly(int(fields["content-length"]))
                keep = fields.get("connection") != "close"
            return int(lines[0].split()[1])
        finally:
            if keep:
                self._idle[client].append((reader, writer))
            else:
                writer.close()

    def leave(self) -> None:
        """Close the connections on which nothing is awaited."""
        for idle in self._idle.values():
            for _, writer in idle:
                writer.close()
        self._idle.clear()
