"""Disk space for bodies that are too large for memory, within a bound, and the threads that may wait for the disk."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable

from threadbridge.memory import Memory
from threadbridge.worker_threads import TaskThreads

# A disk serves few at a time; more threads would only wait for each other.
DISK_THREADS = 4


class SpoolFullError(OSError):
    """The bound on the spool's disk space is reached."""


class ClosedFileError(Exception):
    """Raised by `RingFile` when it has been closed."""


class Spool:
    """What the exchanges of one bridge share of the disk: a number of bytes, and threads for the loop's part.

    :param size: bytes that all temporary files together may take.
    :param memory: the account of bodies that are not in a file; beyond its bound they go to files sooner.

    The files are unnamed, in the directory that ``TMPDIR`` names (default ``/tmp``).
    """

    def __init__(self, size: int, memory: Memory) -> None:
        self.size = size
        self.memory = memory
        self.threads = TaskThreads(DISK_THREADS, "threadbridge-disk")
        self._taken = 0
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

    def reserve(self, size: int) -> bool:
        """Take that many bytes of the bound, if there are as many left. Either side."""
        with self._lock:
            if self._taken + size > self.size:
                return False
            self._taken += size
            return True

    def release(self, size: int) -> None:
        """Give bytes back that were reserved. Either side."""
        with self._lock:
            self._taken -= size


class RingFile:
    """A temporary file of fixed capacity, written and read around and around. Any thread but the loop's.

    One thread writes and one reads; that nothing is overwritten unread is theirs to see to. Closing waits for a write
    or a read that is under way; later ones raise `ClosedFileError`.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - lives as long as this object
        self._lock = threading.Lock()

    def write(self, data: bytes | memoryview, position: int) -> None:
        """Put data at a position, which counts on over the end of the file. Raises ``OSError``, say for a full disk."""
        view = memoryview(data)
        with self._lock:
            while view:
                offset = position % self._capacity
                count = os.pwrite(self._descriptor(), view[: self._capacity - offset], offset)
                position += count
                view = view[count:]

    def read(self, size: int, position: int) -> bytes:
        """Up to ``size`` bytes from a position; fewer where the file's end is between."""
        offset = position % self._capacity
        with self._lock:
            return os.pread(self._descriptor(), min(size, self._capacity - offset), offset)

    def _descriptor(self) -> int:
        if self._file.closed:
            raise ClosedFileError
        return self._file.fileno()

    def close(self) -> None:
        """Give the disk space back."""
        with self._lock:
            self._file.close()
