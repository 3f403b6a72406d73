"""A line to the database that fails in all the ways in which networks do."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


class _Connection:
    """One connection over the line. The line's thread."""

    def __init__(self, near: asyncio.StreamWriter, far: asyncio.StreamWriter) -> None:
        self.writers = (near, far)
        self.passes = asyncio.Event()
        self.passes.set()

    def close(self) -> None:
        for writer in self.writers:
            writer.transport.abort()


class FaultyLine:
    """A Unix socket at ``path`` that leads to another one, ``target``. Its methods may be called in any thread."""

    def __init__(self, target: str) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="line-"))
        self.path = str(self._directory / "line.sock")
        self._target = target
        self._connections: set[_Connection] = set()
        self._delay = 0.0
        self._swallows_new = False
        # What becomes of replies: they pass, are lost with their connection, or are cut in the middle.
        self._replies = "pass"
        self._loop = asyncio.new_event_loop()
        # Futures of connections that were cut have errors that nobody looks at.
        self._loop.set_exception_handler(lambda loop, context: None)
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server = self._run(asyncio.start_unix_server(self._accept, self.path, backlog=500))

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
            await asyncio.gather(
                self._carry(connection, reader, far_writer, is_reply=False),
                self._carry(connection, far_reader, writer, is_reply=True),
            )
        finally:
            self._connections.discard(connection)
            connection.close()

    async def _carry(
        self, connection: _Connection, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, is_reply: bool
    ) -> None:
        with suppress(OSError):
            while data := await source.read(65536):
                if self._delay:
                    await asyncio.sleep(self._delay)
                await connection.passes.wait()
                if is_reply and self._replies != "pass":
                    if self._replies == "cut":
                        sink.write(data[: len(data) // 2])
                        await sink.drain()
                    break
                sink.write(data)
                await sink.drain()
        await connection.passes.wait()
        connection.close()

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

    def spoil_replies(self, how: str) -> None:
        """Have each reply ``lose`` its connection before it arrives, or ``cut`` in its middle."""
        self._replies = how

    def delay(self, seconds: float) -> None:
        """Have everything take so much longer."""
        self._delay = seconds

    def mend(self) -> None:
        """Have everything pass, also what was swallowed."""

        async def mend() -> None:
            self._delay, self._swallows_new, self._replies = 0.0, False, "pass"
            for connection in self._connections:
                connection.passes.set()

        self._run(mend())

    def close(self) -> None:
        """End the line with all its connections."""
        self.mend()
        self.cut()

        async def close() -> None:
            self._server.close()
            await asyncio.sleep(0)

        self._run(close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        shutil.rmtree(self._directory)
