"""How much memory a process takes for what its clients send, or for what they do not read, over all connections."""

from __future__ import annotations

import threading

MEMORY_SIZE = 32 * 1024**2
# Smaller pieces of a body are copied together: each object costs memory of its own.
SMALL_PIECE = 4096


class Memory:
    """An account of bytes with a bound. Beyond it those who hold bytes must hold less; nothing fails here. Any thread.

    :param size: the bound, in bytes. Default 32 MiB.

    A bridge has two: one for heads and bodies of requests that have not been passed on, or wait in memory for a worker
    or a disk; the other for responses that wait for their clients, whether the application still makes them or not.
    Apart, so that nobody's request is refused because others do not read.
    """

    def __init__(self, size: int = MEMORY_SIZE) -> None:
        self.size = size
        self.taken = 0
        self._lock = threading.Lock()

    def add(self, size: int) -> None:
        """Count bytes that are held from now on, or, negative, are not any more."""
        with self._lock:
            self.taken += size

    @property
    def is_half_full(self) -> bool:
        """Whether what can go to the disk should: the other half is for what cannot."""
        return self.taken > self.size // 2

    @property
    def is_full(self) -> bool:
        """Whether more is held than should be."""
        return self.taken > self.size
