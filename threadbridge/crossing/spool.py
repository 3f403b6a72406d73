"""Disk space for bodies that are too large for memory, within a bound, and the threads that may wait for the disk."""

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

# A disk serves few at a time; more threads would only wait for each other.
DISK_THREADS = 4
# One client may take this part of the disk space: a quarter.
PART_PER_CLIENT = 4
# How the file of a response grows.
BLOCK = 256 * 1024


class SpoolFullError(OSError):
    """The bound on the spool's disk space is reached, in all or for one client."""


class ClosedFileError(Exception):
    """Raised by `BlockFile` when it has been closed."""


class Spool:
    """What the exchanges of one bridge share of the disk: a number of bytes, and threads for the loop's part.

    :param size: bytes that all temporary files together may take.
    :param memory: the account of requests' bodies that are not in a file; once it is half full they go to files sooner.
    :param unread: the same of responses.

    A client, as in the queues, gets a quarter of the space at most.

    The files are unnamed, in the directory that ``TMPDIR`` names (default ``/tmp``).
    """

    def __init__(self, size: int, memory: Memory, unread: Memory) -> None:
        self.size = size
        self.memory = memory
        self.unread = unread
        # Of requests that the disk has no room for, and of responses.
        self.request_log, self.response_log = RepeatedLog(logger), RepeatedLog(logger)
        self.threads = TaskThreads(DISK_THREADS, "threadbridge-disk")
        self._taken = 0
        self._by_client: dict[str, int] = {}
        self._lock = threading.Lock()

    @property
    def taken(self) -> int:
        """Bytes that are reserved now. Either side."""
        return self._taken

    def clear_up(self, task: Callable[[], object]) -> None:
        """Have a disk thread close a file; if none can be started, close it in this thread. Either side."""
        try:
            self.threads.submit(task)
        except RuntimeError:
            task()

    def reserve(self, size: int, client: str) -> bool:
        """Take that many bytes for a client, if there are as many left for it. Either side."""
        with self._lock:
            of_client = self._by_client.get(client, 0) + size
            if self._taken + size > self.size or of_client > self.size // PART_PER_CLIENT:
                return False
            self._taken += size
            self._by_client[client] = of_client
            return True

    def release(self, size: int, client: str) -> None:
        """Give bytes back that were reserved for a client. Either side."""
        with self._lock:
            self._taken -= size
            self._by_client[client] -= size
            if not self._by_client[client]:
                del self._by_client[client]


class BlockFile:
    """A temporary file that is written at its end and read from its beginning; what was read makes room. Not the loop.

    :param client: for whom the space is taken.

    One thread writes and one reads. Positions count all that was ever written. Closing waits for a write or a read that
    is under way; later ones raise `ClosedFileError`. Raises ``OSError`` where no file can be made.
    """

    def __init__(self, spool: Spool, client: str) -> None:
        self._spool = spool
        self._client = client
        self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - lives as long as this object
        self._lock = threading.Lock()
        self._start = 0
        self._end = 0
        # Where in the file the blocks are that hold what is between, in order; and those that hold nothing.
        self._blocks: deque[int] = deque()
        self._free: list[int] = []
        self._size = 0

    def append(self, data: bytes | memoryview) -> bool:
        """Write bytes behind the others; False if there is no room for all of them. Raises ``OSError``."""
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
            # Only now: whoever got an error puts the data elsewhere.
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
        """Up to ``size`` of the oldest bytes, and fewer where a block ends."""
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
