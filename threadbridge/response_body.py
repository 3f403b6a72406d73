"""A response's body on its way from a worker to the loop, for as long as the client takes."""

from __future__ import annotations

import enum
import io
import logging
import os
import stat
import threading
from collections import deque
from collections.abc import Callable, Sequence
from types import BuiltinMethodType
from typing import IO, Protocol, TypeAlias

from threadbridge.spool import ClosedFileError, RingFile, Spool

logger = logging.getLogger("threadbridge")

# How much of a body waits in memory, and how much in all, before the application does.
MEMORY_LIMIT = 1024 * 1024
SPOOL_LIMIT = 16 * 1024 * 1024
# How much is written to the socket at once.
PIECE = 256 * 1024
# Smaller ones are copied together before that.
WORTH_A_PLACE = 4096
# How long a worker waits for the client to make room in memory before it writes to the disk: one that reads as fast as
# a network carries is not worth a file.
SPILL_DELAY = 0.02

Buffer: TypeAlias = bytes | memoryview
# What a source has: pieces of the body, nothing more (empty), nothing yet (None), or bytes for a disk thread to fetch.
Taken: TypeAlias = Sequence[Buffer] | Callable[[], bytes] | None


class ClientDisconnected(ConnectionError):
    """Raised in application code by PEP 3333's ``write()`` when nobody is left to read."""


class Source(Protocol):
    """Where the loop takes a response's body from."""

    def take(self) -> Taken:
        """What comes next, if it can be had without waiting. Loop side."""

    def close(self) -> None:
        """Take no more. Loop side."""


class _Place(enum.Enum):
    MEMORY = enum.auto()
    FILE = enum.auto()
    NEW_FILE = enum.auto()


class Channel:
    """A queue of bytes from a worker to the loop: memory first, then a file, and then the worker waits.

    :param spool: where the file may be, and the threads that read and close it.
    :param wake: called on the worker side when the reader, having found nothing, should look again.

    There is one writer and one reader. What is in memory is guarded by a condition, under which nobody waits for the
    disk. The bytes in memory are older than those in the file: as long as the file has some, new ones go there.
    """

    def __init__(self, spool: Spool, wake: Callable[[], None]) -> None:
        self._spool = spool
        self._wake = wake
        self._chunks: deque[Buffer] = deque()
        self._in_memory = 0
        self._file: RingFile | None = None
        self._may_spill = True
        # Positions in the file, which only grow; what lies between them is still to be read.
        self._file_start = 0
        self._file_end = 0
        self._reader_waits = False
        self._complete = False
        self._closed = False
        self._changed = threading.Condition(threading.Lock())

    # Worker side.

    def put(self, data: Buffer) -> None:
        """Append bytes, after waiting until there is room. Worker side.

        Raises `ClientDisconnected` once the reader has closed the channel, also while waiting.
        """
        if len(data) <= PIECE:
            self._put_piece(data)
            return
        view = memoryview(data)
        for start in range(0, len(view), PIECE):
            self._put_piece(view[start : start + PIECE])

    def complete(self) -> None:
        """Say that nothing more will come. Worker side."""
        with self._changed:
            self._complete = True
            wake = self._reader_must_wake()
        if wake:
            self._wake()

    def _put_piece(self, piece: Buffer) -> None:
        while True:
            with self._changed:
                place = self._wait_for_place(len(piece))
                position = self._file_end
                if place is _Place.MEMORY:
                    self._chunks.append(piece)
                    self._in_memory += len(piece)
                    wake = self._reader_must_wake()
                    break
            if place is _Place.NEW_FILE:
                self._open_file()
            elif self._write_to_file(piece, position):
                with self._changed:
                    self._file_end += len(piece)
                    wake = self._reader_must_wake()
                break
        if wake:
            self._wake()

    def _wait_for_place(self, size: int) -> _Place:
        while not self._closed:
            in_file = self._file_end - self._file_start
            if not in_file and (not self._in_memory or self._in_memory + size <= MEMORY_LIMIT):
                return _Place.MEMORY
            if not self._may_spill:
                self._changed.wait()
            elif self._file is None:
                if not self._changed.wait(SPILL_DELAY):
                    return _Place.NEW_FILE
            elif self._in_memory + in_file + size <= SPOOL_LIMIT:
                return _Place.FILE
            else:
                self._changed.wait()
        raise ClientDisconnected("the client has left before the response was complete")

    def _open_file(self) -> None:
        if not self._spool.reserve(SPOOL_LIMIT):
            self._may_spill = False
            return
        try:
            file = RingFile(SPOOL_LIMIT)
        except OSError:
            logger.exception("no temporary file for a response; its application waits for the client instead")
            self._spool.release(SPOOL_LIMIT)
            self._may_spill = False
            return
        with self._changed:
            self._file = file
            if self._closed:
                self._discard_file()

    def _write_to_file(self, piece: Buffer, position: int) -> bool:
        file = self._file
        if file is None:
            # Closed meanwhile.
            return False
        try:
            file.write(piece, position)
        except ClosedFileError:
            return False
        except OSError:
            logger.exception("cannot spool a response; its application waits for the client instead")
            self._may_spill = False
            return False
        return True

    def _reader_must_wake(self) -> bool:
        waits, self._reader_waits = self._reader_waits, False
        return waits

    # Loop side.

    def take(self) -> Taken:
        """See `Source`."""
        with self._changed:
            if self._chunks:
                self._changed.notify()
                return self._take_from_memory()
            if self._file_end > self._file_start:
                return self._read_file
            if self._complete:
                return ()
            self._reader_waits = True
            return None

    def _take_from_memory(self) -> Sequence[Buffer]:
        pieces = [self._chunks.popleft()]
        size = len(pieces[0])
        while self._chunks and size + len(self._chunks[0]) <= PIECE:
            size += len(self._chunks[0])
            pieces.append(self._chunks.popleft())
        self._in_memory -= size
        return (b"".join(pieces),) if size < len(pieces) * WORTH_A_PLACE else pieces

    def _read_file(self) -> bytes:
        """Fetch bytes from the file. Disk thread."""
        file = self._file
        if file is None:
            return b""
        data = file.read(min(PIECE, self._file_end - self._file_start), self._file_start)
        with self._changed:
            self._file_start += len(data)
            self._changed.notify()
        return data

    def close(self) -> None:
        """Take no more: a waiting or later `put` raises `ClientDisconnected`. Loop side, once."""
        with self._changed:
            self._closed = True
            self._chunks.clear()
            self._changed.notify()
            self._discard_file()

    def _discard_file(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            self._spool.clear_up(file.close)
            self._spool.release(SPOOL_LIMIT)


class FileSource:
    """A file that is sent without a worker: its descriptor is duplicated, so the application may close its own at once.

    :param file: a regular file that the application has opened; it is sent from its current position.
    :param limit: send no more bytes than this.

    Raises ``OSError`` when the object is no such file. Made on the worker side.
    """

    def __init__(self, spool: Spool, file: IO[bytes], limit: int | None) -> None:
        if not _reads_plainly(file):
            raise io.UnsupportedOperation("its read() may give other bytes than the file has")
        descriptor = file.fileno()
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise io.UnsupportedOperation("not a regular file")
        self._offset = file.tell()
        self.size = max(0, status.st_size - self._offset)
        if limit is not None:
            self.size = min(self.size, limit)
        self._remaining = self.size
        self._spool = spool
        self._descriptor = os.dup(descriptor)
        # Held while a disk thread reads: the descriptor must not be closed, and given to another file, under it.
        self._lock = threading.Lock()

    def take(self) -> Taken:
        """See `Source`."""
        return self._read if self._remaining else ()

    def _read(self) -> bytes:
        with self._lock:
            if self._descriptor < 0:
                return b""
            data = os.pread(self._descriptor, min(PIECE, self._remaining), self._offset)
        if not data:
            raise EOFError(f"the file has become {self._remaining} bytes shorter while it was sent")
        self._offset += len(data)
        self._remaining -= len(data)
        return data

    def close(self) -> None:
        """See `Source`."""
        self._spool.clear_up(self._close)

    def _close(self) -> None:
        with self._lock:
            os.close(self._descriptor)
            self._descriptor = -1


def _reads_plainly(file: IO[bytes]) -> bool:
    """Whether reading gives just what is in the file: a `gzip.GzipFile` too has a descriptor, of compressed bytes."""
    read = file.read
    reader = read.__self__ if isinstance(read, BuiltinMethodType) else None
    raw = reader.raw if isinstance(reader, (io.BufferedReader, io.BufferedRandom)) else reader
    return isinstance(raw, io.FileIO)
