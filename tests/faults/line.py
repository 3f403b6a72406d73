"""A line to the database that fails in all the ways in which networks do."""

from __future__ import annotations

import asyncio
import shutil
import socket
import struct
import tempfile
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass
class LostReply:
    """A reply that is to be lost, with its connection: the one to the next statement with this text.

    :param keep: how many bytes of it arrive.
    """

    part: bytes
    keep: int
    happened: threading.Event = field(default_factory=threading.Event)


class _Connection:
    """One connection over the line. The line's thread."""

    def __init__(self, near: asyncio.StreamWriter, far: asyncio.StreamWriter) -> None:
        self.near = near
        self.far = far
        self.passes = asyncio.Event()
        self.passes.set()
        self.lost: LostReply | None = None

    def close(self) -> None:
        for writer in (self.near, self.far):
            writer.transport.abort()

    def reset(self) -> None:
        """As `close`; over TCP the application's end gets an RST in place of a FIN."""
        with suppress(OSError):
            end: socket.socket = self.near.get_extra_info("socket")
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()


class FaultyLine:
    """Leads to the Unix socket ``target``, from one at ``path`` and from ``port`` on loopback.

    Its methods may be called in any thread.
    """

    def __init__(self, target: str) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="line-"))
        self.path = str(self._directory / "line.sock")
        self._target = target
        self._connections: set[_Connection] = set()
        self._delay = 0.0
        self._swallows_new = False
        # What becomes of replies: they pass, are lost with their connection, or are cut in the middle.
        self._replies = "pass"
        self._lost: LostReply | None = None
        self._unanswered: bytes | None = None
        self._loop = asyncio.new_event_loop()
        # Futures of connections that were cut have errors that nobody looks at.
        self._loop.set_exception_handler(lambda loop, context: None)
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        tcp = self._run(asyncio.start_server(self._accept, "127.0.0.1", 0, backlog=500))
        self.port: int = tcp.sockets[0].getsockname()[1]
        self._servers = [tcp, self._run(asyncio.start_unix_server(self._accept, self.path, backlog=500))]

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        done: Future[T] = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        return done.result(30)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_unix_connection(self._target)
        except OSError:
            writer.transport.abort()
            return
        connection = _Connection(writer, far_writer)
        if self._swallows_new:
            connection.passes.clear()
        self._connections.add(connection)
        try:
            await asyncio.gather(self._carry_there(connection, reader), self._carry_back(connection, far_reader))
        finally:
            self._connections.discard(connection)
            connection.close()

    async def _carry_there(self, connection: _Connection, source: asyncio.StreamReader) -> None:
        with suppress(OSError):
            while data := await source.read(65536):
                await asyncio.sleep(self._delay)
                if self._unanswered is not None and self._unanswered in data:
                    connection.passes.clear()
                await connection.passes.wait()
                if self._lost is not None and self._lost.part in data:
                    connection.lost, self._lost = self._lost, None
                connection.far.write(data)
                await connection.far.drain()
        await connection.passes.wait()
        connection.close()

    async def _carry_back(self, connection: _Connection, source: asyncio.StreamReader) -> None:
        with suppress(OSError):
            while data := await source.read(65536):
                await asyncio.sleep(self._delay)
                await connection.passes.wait()
                kept = len(data)
                if connection.lost is not None:
                    kept = connection.lost.keep
                    connection.lost.happened.set()
                elif self._replies != "pass":
                    kept = len(data) // 2 if self._replies == "cut" else 0
                if kept:
                    connection.near.write(data[:kept])
                    await connection.near.drain()
                if kept < len(data):
                    break
        await connection.passes.wait()
        connection.close()

    @property
    def swallowed(self) -> int:
        """How many connections pass nothing."""
        return sum(not connection.passes.is_set() for connection in list(self._connections))

    # The faults. Each lasts until `mend`.

    def swallow(self, *, new: bool) -> None:
        """Let nothing pass on the connections that there are, and on new ones if ``new``."""

        async def swallow() -> None:
            self._swallows_new = new
            for connection in self._connections:
                connection.passes.clear()

        self._run(swallow())

    def cut(self) -> None:
        """End all connections at once."""

        async def cut() -> None:
            for connection in self._connections:
                connection.close()

        self._run(cut())

    def reset(self) -> None:
        """End all connections at once, with an RST where they come over TCP."""

        async def reset() -> None:
            for connection in self._connections:
                connection.reset()

        self._run(reset())

    def half_close(self) -> None:
        """Let the application read the end of all connections; what it sends still arrives."""

        async def half_close() -> None:
            for connection in self._connections:
                with suppress(OSError):
                    connection.near.write_eof()

        self._run(half_close())

    def lose_reply(self, part: bytes, keep: int = 0) -> LostReply:
        """Have the next statement with this text executed, and its connection lost with all but the reply's start."""
        self._lost = lost = LostReply(part, keep)
        return lost

    def swallow_at(self, part: bytes) -> None:
        """Let nothing pass any more on a connection from a statement with this text on."""
        self._unanswered = part

    def spoil_replies(self, how: str) -> None:
        """Have each reply ``lose`` its connection before it arrives, or ``cut`` in its middle."""
        self._replies = how

    def delay(self, seconds: float) -> None:
        """Have everything take so much longer."""
        self._delay = seconds

    def mend(self) -> None:
        """Have everything pass, also what was swallowed."""

        async def mend() -> None:
            self._delay, self._swallows_new, self._replies, self._lost = 0.0, False, "pass", None
            self._unanswered = None
            for connection in self._connections:
                connection.passes.set()

        self._run(mend())

    def close(self) -> None:
        """End the line with all its connections."""
        self.mend()
        self.cut()

        async def close() -> None:
            for server in self._servers:
                server.close()
            if connections := asyncio.all_tasks() - {asyncio.current_task()}:
                await asyncio.wait(connections, timeout=5)

        self._run(close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        shutil.rmtree(self._directory)
