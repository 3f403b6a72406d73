"""A request's body: received on the loop side, read by the application as ``wsgi.input``."""

from __future__ import annotations

import asyncio
import io
import tempfile
from typing import IO

from threadbridge.spool import Spool, SpoolFullError

# How much a body may take of memory before it goes to a file; Werkzeug and Django draw their lines near there.
MEMORY_LIMIT = 1024 * 1024
# How much goes to the file at once: a trip to a disk thread costs more than copying a few kilobytes.
WRITE_SIZE = 256 * 1024


class RequestBody:
    """The bytes of one request: in memory up to `MEMORY_LIMIT`, in an unnamed temporary file beyond.

    The loop owns it until a worker runs the exchange; disk threads act for the loop, one at a time.
    """

    # Most requests have no body, so that these stay as they are.
    size = 0
    _buffered = 0
    _file: IO[bytes] | None = None
    _reserved = 0
    _writing: asyncio.Future[None] | None = None

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._chunks: list[bytes] = []

    def append(self, chunk: bytes) -> asyncio.Future[None] | None:
        """Keep a piece; a future, if one is returned, must be done before the next. Loop side.

        The future fails with ``OSError`` when there is no room on the disk. Raises ``RuntimeError`` when no thread can
        be started for the disk.
        """
        self.size += len(chunk)
        self._chunks.append(chunk)
        self._buffered += len(chunk)
        if self._buffered < (MEMORY_LIMIT if self._file is None else WRITE_SIZE):
            return None
        self._writing = asyncio.get_running_loop().run_in_executor(self._spool.threads, self._write_out)
        return self._writing

    def _write_out(self) -> None:
        if not self._spool.reserve(self._buffered):
            raise SpoolFullError(f"the spool's {self._spool.size} bytes are taken")
        self._reserved += self._buffered
        if self._file is None:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as this object
        self._file.writelines(self._chunks)
        self._file.flush()
        self._chunks.clear()
        self._buffered = 0

    def open(self) -> IO[bytes]:
        """The whole body as a file, from its beginning. Worker side, once."""
        if self._file is None:
            return io.BytesIO(self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks))
        self._file.writelines(self._chunks)
        self._file.seek(0)
        self._chunks.clear()
        return self._file

    def close(self) -> None:
        """Give memory and disk space back. Worker side, or a disk thread."""
        self._chunks.clear()
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._reserved:
            self._spool.release(self._reserved)
            self._reserved = 0

    def discard(self) -> None:
        """Close a body that no worker will read, as soon as nothing is being written to it. Loop side."""
        if self._writing is None:
            self.close()
        else:
            self._writing.add_done_callback(lambda written: self._spool.clear_up(self.close))
