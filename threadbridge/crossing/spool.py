"""Bounded disk space for bodies that are too large for memory, and the threads that wait for the disk."""

from __future__ import annotations

import logging
import os
import tempfile
import threading
from collections import deque
from collections.abc import Callable

from threadbridge.common.repeated_log import RepeatedLog
from threadbridge.common.worker_threads import TaskThreads
from threadbridge.http.limits import Memory

logger = logging.getLogger("threadbridge")

# More threads would only wait for each other: a disk serves few at a time.
DISK_THREADS = 4
# One client may take a quarter of the disk space.
PART_PER_CLIENT = 4
# How the file of a response grows.
BLOCK = 256 * 1024


class ClosedFileError(Exception):
    """Raised by `BlockFile` when it has been closed."""


class Spool:
    """The disk space that the exchanges of one bridge share, and threads that use the disk for the loop.

    All files together take at most ``size`` bytes, and one client's a quarter. They are unnamed, in the directory that
    ``TMPDIR`` names (default ``/tmp``). ``memory`` counts requests' bodies in memory, ``unread`` those of responses.
    """

    def __init__(self, size: int, memory: Memory, unread: Memory) -> None:
        self.size = size
        self.memory = memory
        self.unread = unread
        # For requests and responses that the disk has no room for.
        self.request_log, self.response_log = RepeatedLog(logger), RepeatedLog(logger)
        self.threads = TaskThreads(DISK_THREADS, "threadbridge-disk")
        # The reserved bytes, in all and by client.
        self.taken = 0
        self._by_client: dict[str, int] = {}
        self._lock = threading.Lock()

    def clear_up(self, task: Callable[[], object]) -> None:
        """Run a task that closes a file in a disk thread, or in this one if none can be started. Either side."""
        try:
            self.threads.submit(task)
        except RuntimeError:
            task()

    def reserve(self, size: int, client: str) -> bool:
        """Reserve bytes for a client; False if fewer are left for it. Either side."""
        with self._lock:
            of_client = self._by_client.get(client, 0) + size
            if self.taken + size > self.size or of_client > self.size // PART_PER_CLIENT:
                return False
            self.taken += size
            self._by_client[client] = of_client
            return True

    def release(self, size: int, client: str) -> None:
        """Give back bytes that were reserved for a client. Either side."""
        with self._lock:
            self.taken -= size
            self._by_client[client] -= size
            if not self._by_client[client]:
                del self._by_client[client]


class BlockFile:
    """A queue of bytes in a temporary file, whose blocks are reused once they have been read. Not on the loop.

    One thread writes and one reads. Positions count all bytes ever written. Closing waits for a write or read that is
    under way; later ones raise `ClosedFileError`. Raises ``OSError`` if no file can be made.
    """

    def __init__(self, spool: Spool, client: str) -> None:
        self._spool = spool
        self._client = client
        self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - lives as long as this object
        self._lock = threading.Lock()
        self._start = 0
        self._end = 0
        # Positions of the blocks that hold the bytes between them, in order, and of free blocks.
        self._blocks: deque[int] = deque()
        self._free: list[int] = []
        self._size = 0

    def append(self, data: bytes | memoryview) -> bool:
        """Append bytes; False if there is no room for all of them. Raises ``OSError``."""
        view = memoryview(data)
        with self._lock:
            descriptor = self._descriptor()
            if not self._has_room_for(len(view)):
                return False
            end = self._end
            while view:
                index, offset = divmod(end - self._start // BLOCK * BLOCK, BLOCK)
                count = os.pwrite(descriptor, view[: BLOCK - offset], self._blocks[index] * BLOCK + offset)
                end += count
                view = view[count:]
            # Only now: after an error the caller puts the data elsewhere.
            self._end = end
        return True

    def _has_room_for(self, size: int) -> bool:
        needed = -(-(self._end + size) // BLOCK) - self._start // BLOCK
        while len(self._blocks) < needed:
            if not self._free:
                if not self._spool.reserve(BLOCK, self._client):
                    return False
                self._free.append(self._size)
                self._size += 1
            self._blocks.append(self._free.pop())
        return True

    def take(self, size: int) -> bytes:
        """Take up to ``size`` of the oldest bytes, and fewer at the end of a block."""
        with self._lock:
            offset = self._start % BLOCK
            size = min(size, BLOCK - offset, self._end - self._start)
            data = os.pread(self._descriptor(), size, self._blocks[0] * BLOCK + offset)
            self._start += len(data)
            if offset + len(data) == BLOCK:
                self._free.append(self._blocks.popleft())
            return data

    def _descriptor(self) -> int:
        if self._file.closed:
            raise ClosedFileError
        return self._file.fileno()

    def close(self) -> None:
        """Give the disk space back."""
        with self._lock:
            self._file.close()
            if self._size:
                self._spool.release(self._size * BLOCK, self._client)
                self._size = 0
