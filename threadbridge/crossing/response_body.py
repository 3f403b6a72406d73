"""A response's body on its way from a worker to the loop, at the pace of the client."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias

from threadbridge.crossing.spool import BlockFile, ClosedFileError, Spool
from threadbridge.http.limits import SMALL_PIECE

# The bytes of a body that wait in memory before more goes to the disk.
MEMORY_LIMIT = 1024 * 1024
# The bytes written to the socket at once.
PIECE = 256 * 1024
# Both limits once the memory for unread responses is used up.
KEPT = 16 * 1024
# Seconds that a worker waits for the client before it writes to the disk: a client that reads at the speed of a network
# is not worth a file.
SPILL_DELAY = 0.02
# A response that finds no room keeps its thread waiting. If other requests need the thread, the response is cut after
# this many seconds, and one more for each THREAD_RATE bytes that its client has read.
THREAD_TIME = 10.0
THREAD_RATE = 1024 * 1024
# Seconds between two checks for room and for other requests that wait.
LOOK_INTERVAL = 0.5

Buffer: TypeAlias = bytes | memoryview
# What a source has next: pieces of the body, () at its end, None for nothing yet, or a function that reads the disk.
Taken: TypeAlias = Sequence[Buffer] | Callable[[], bytes] | None


class ClientDisconnected(ConnectionError):
    """Raised in the application by PEP 3333's ``write()`` when the client has left."""


class Source(Protocol):
    """Where the loop takes a response's body from."""

    def take(self) -> Taken:
        """Return what comes next, without waiting. Loop side."""

    def close(self) -> None:
        """Take no more. Loop side."""


def piece_size(spool: Spool) -> int:
    """Return how many bytes of a response to give to its connection at once. Any thread."""
    return KEPT if spool.unread.is_full else PIECE


class Channel:
    """A queue of bytes from a worker to the loop: in memory, then in a file, and then the worker waits.

    :param wake: called on the worker side when the reader, which found nothing, should look again.
    :param is_wanted: returns whether other requests wait for the worker's thread. Worker side.
    :param cut: closes the channel; called on the worker side when the reader takes too long, before `put` raises.

    A condition guards what is in memory; the disk is never used under it. The bytes in memory are older than those in
    the file: while the file has some, new ones go there.
    """

    def __init__(
        self,
        spool: Spool,
        client: str,
        wake: Callable[[], None],
        is_wanted: Callable[[], bool],
        cut: Callable[[], None],
    ) -> None:
        self._spool = spool
        self._client = client
        self._wake = wake
        self._is_wanted = is_wanted
        self._cut = cut
        self._chunks: deque[Buffer] = deque()
        self._in_memory = 0
        self._file: BlockFile | None = None
        self._may_spill = True
        self._in_file = 0
        # Bytes that the reader has taken; of these, the ones that the writer knows of; seconds that it has waited.
        self._taken = 0
        self._seen = 0
        self._waited = 0.0
        self._reader_waits = False
        self._complete = False
        self._closed = False
        self._changed = threading.Condition(threading.Lock())

    def put(self, data: Buffer) -> None:
        """Append bytes when there is room; raises `ClientDisconnected` if the client left or was cut. Worker side."""
        view = memoryview(data)
        for start in range(0, len(view), PIECE):
            piece = view[start : start + PIECE]
            while not (self._put_in_memory(piece) or self._put_in_file(piece)):
                self._wait_for_room()

    def complete(self) -> None:
        """Mark the end of the body. Worker side."""
        with self._changed:
            self._complete = True
        self._wake_reader()

    def _wake_reader(self) -> None:
        with self._changed:
            waits, self._reader_waits = self._reader_waits, False
        if waits:
            self._wake()

    def _put_in_memory(self, piece: memoryview) -> bool:
        """Keep a piece in memory; False if there is no room."""
        with self._changed:
            if not self._has_memory_for(len(piece)) and self._file is None and not self._spool.unread.is_full:
                self._changed.wait_for(lambda: self._closed or self._has_memory_for(len(piece)), SPILL_DELAY)
            if self._closed:
                raise ClientDisconnected("the client has left before the response was complete")
            self._seen = self._taken
            if not self._has_memory_for(len(piece)):
                return False
            self._chunks.append(piece)
            self._in_memory += len(piece)
            self._spool.unread.add(len(piece))
        self._wake_reader()
        return True

    def _has_memory_for(self, size: int) -> bool:
        if self._reader_waits:
            # Nothing else is in memory.
            return True
        limit = KEPT if self._spool.unread.is_full else MEMORY_LIMIT
        return not self._in_file and self._in_memory + size <= limit

    def _put_in_file(self, piece: memoryview) -> bool:
        """Write a piece to the file; False if there is no room."""
        if not self._may_spill:
            return False
        try:
            if not (self._file or self._open_file()).append(piece):
                return False
        except ClosedFileError:
            return False
        except OSError as error:
            message = "cannot write a response to a temporary file; its thread waits for the client instead: %r"
            self._spool.response_log.log(logging.ERROR, message, error)
            self._may_spill = False
            return False
        with self._changed:
            self._in_file += len(piece)
        self._wake_reader()
        return True

    def _open_file(self) -> BlockFile:
        file = BlockFile(self._spool, self._client)
        with self._changed:
            self._file = file
            if self._closed:
                self._discard_file()
        return file

    def _wait_for_room(self) -> None:
        """Wait until the reader has taken something, or others may have made room."""
        began = time.monotonic()
        with self._changed:
            self._changed.wait_for(
                lambda: self._closed or self._reader_waits or self._taken > self._seen, LOOK_INTERVAL
            )
            self._waited += time.monotonic() - began
            is_slow = self._waited > THREAD_TIME + self._taken / THREAD_RATE
        if is_slow and not self._closed and self._is_wanted():
            self._cut()
            raise ClientDisconnected("the client reads too slowly, and others wait for the thread")

    def take(self) -> Taken:
        """See `Source`. Loop side."""
        with self._changed:
            if self._chunks:
                self._changed.notify()
                return self._take_from_memory()
            if self._in_file:
                return self._read_file
            if self._complete:
                return ()
            self._reader_waits = True
            # The writer may wait for this.
            self._changed.notify()
            return None

    def _take_from_memory(self) -> Sequence[Buffer]:
        limit = piece_size(self._spool)
        pieces = [self._chunks.popleft()]
        size = len(pieces[0])
        while self._chunks and size + len(self._chunks[0]) <= limit:
            size += len(self._chunks[0])
            pieces.append(self._chunks.popleft())
        self._count_taken(size)
        return (b"".join(pieces),) if size < len(pieces) * SMALL_PIECE else pieces

    def _count_taken(self, size: int) -> None:
        self._in_memory -= size
        self._taken += size
        self._spool.unread.add(-size)

    def _read_file(self) -> bytes:
        """Fetch bytes from the file. Disk thread."""
        file = self._file
        if file is None:
            return b""
        data = file.take(piece_size(self._spool))
        with self._changed:
            self._in_file -= len(data)
            self._taken += len(data)
            self._changed.notify()
        return data

    def close(self) -> None:
        """Take no more: `put` raises `ClientDisconnected`, also if it waits. Loop side, once."""
        with self._changed:
            self._closed = True
            self._chunks.clear()
            self._count_taken(self._in_memory)
            self._changed.notify()
            self._discard_file()

    def _discard_file(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            self._spool.clear_up(file.close)
