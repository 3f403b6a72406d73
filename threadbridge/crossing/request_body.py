"""A request's body: received on the loop, read by the application as ``wsgi.input``."""

from __future__ import annotations

import asyncio
import errno
import io
import os
import tempfile
from typing import IO, Final

from threadbridge.crossing.response_body import PIECE
from threadbridge.crossing.spool import Spool
from threadbridge.http.limits import SMALL_PIECE

# The memory that a body may take before it goes to a file. Werkzeug and Django have similar limits.
MEMORY_LIMIT: Final = 1024 * 1024
# The size of a write to the file: a trip to a disk thread costs more than copying a few kilobytes.
WRITE_SIZE: Final = 256 * 1024
# What stays in memory even when little is left: a file would cost about as much.
KEPT: Final = 16 * 1024


class RequestBody:
    """The bytes of one request: in memory up to `MEMORY_LIMIT`, then in an unnamed temporary file.

    The loop owns it until a worker runs the exchange; disk threads act for the loop, one at a time.
    """

    size = 0
    # The bytes in memory.
    held = 0
    _file: IO[bytes] | None = None
    _reserved = 0
    _client = ""
    _writing: asyncio.Future[None] | None = None

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._chunks: list[bytes | bytearray] = []

    def append(self, chunk: bytes, client: str) -> asyncio.Future[None] | None:
        """Keep a piece; if a future is returned, wait for it before the next. Loop side.

        It fails with ``OSError`` if the disk has no room. Raises ``RuntimeError`` if no disk thread can be started.
        """
        self._client = client
        self.size += len(chunk)
        self.held += len(chunk)
        self._spool.memory.add(len(chunk))
        last = self._chunks[-1] if self._chunks else None
        if isinstance(last, bytearray) and len(last) < WRITE_SIZE:
            # Not +=, which mypyc compiles to a new object.
            last.extend(chunk)
        elif last is not None and len(chunk) < SMALL_PIECE:
            self._chunks.append(bytearray(chunk))
        else:
            self._chunks.append(chunk)
        if self.held < (MEMORY_LIMIT if self._file is None else WRITE_SIZE) and (
            self.held < KEPT or not self._spool.memory.is_half_full
        ):
            return None
        return self._write_in_thread()

    def complete(self) -> asyncio.Future[None] | None:
        """Write the rest to the file, if there is one; wait for the future before `open`. Loop side."""
        return self._write_in_thread() if self._file is not None and self._chunks else None

    def _write_in_thread(self) -> asyncio.Future[None]:
        self._writing = asyncio.get_running_loop().run_in_executor(self._spool.threads, self._write_out)
        return self._writing

    def _write_out(self) -> None:
        if not self._spool.reserve(self.held, self._client):
            reason = f"the {self._spool.size} bytes of spool_size, or this client's share of them, are used up"
            raise OSError(errno.ENOSPC, reason)
        self._reserved += self.held
        if self._file is None:
            # Unbuffered: nothing is left to be written, and to fail, when it is closed.
            self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - lives as long as this object
        for chunk in self._chunks:
            view = memoryview(chunk)
            while view:
                # In two steps: mypyc would evaluate a call inside the slice twice.
                written = self._file.write(view)
                view = view[written:]
        self._drop()

    def _drop(self) -> None:
        self._chunks.clear()
        if self.held:
            self._spool.memory.add(-self.held)
            self.held = 0

    def beginning(self, size: int) -> bytes:
        """Return so many bytes of a complete body, or fewer if they are not in one piece in memory. Loop side."""
        return bytes(self._chunks[0][:size]) if self._file is None and self._chunks else b""

    def open(self) -> IO[bytes]:
        """Return the whole body as a file, from its beginning. Worker side, once."""
        if self._file is None:
            # `join` does not copy a lone chunk.
            return io.BytesIO(b"".join(self._chunks))
        self._file.seek(0)
        return io.BufferedRandom(self._file)  # type: ignore[arg-type]

    @property
    def is_in_file(self) -> bool:
        """Whether a part of it is on the disk. Loop side."""
        return self._file is not None

    def pieces(self) -> list[memoryview]:
        """Return a complete body that is in memory: instead of `open`, and as often as needed. Loop side."""
        return [memoryview(chunk) for chunk in self._chunks]

    def read_at(self, position: int) -> bytes:
        """Return a piece of a complete body that is in the file. In a disk thread; it must end before `close`."""
        assert self._file is not None
        data = os.pread(self._file.fileno(), PIECE, position)
        if not data:
            raise EOFError("the temporary file of a request's body is too short")
        return data

    def close(self) -> None:
        """Give memory and disk space back, even if closing the file fails. Worker side, or a disk thread."""
        self._drop()
        reserved, self._reserved = self._reserved, 0
        try:
            if self._file is not None:
                self._file.close()
                self._file = None
        finally:
            if reserved:
                self._spool.release(reserved, self._client)

    def discard(self) -> None:
        """Close a body that no worker will read, after any write that is under way. Loop side."""
        if self._writing is None:
            self.close()
        else:
            self._writing.add_done_callback(lambda written: self._spool.clear_up(self.close))
