"""Counts the memory that all connections of a process take for incoming requests, or for unread responses."""

from __future__ import annotations

import threading

MEMORY_SIZE = 32 * 1024**2
# Smaller pieces of a body are joined: each object costs memory of its own.
SMALL_PIECE = 4096


class Memory:
    """An account of bytes with a bound. Nothing fails beyond the bound; the holders must then hold less. Any thread.

    :param size: the bound, in bytes. Default 32 MiB.

    A bridge has two. One counts heads and bodies of requests that have not been passed on, or wait in memory for a
    worker or a disk; the other counts responses that wait for their clients. They are separate so that no request is
    refused because other clients do not read.
    """

    def __init__(self, size: int = MEMORY_SIZE) -> None:
        self.size = size
        self.taken = 0
        self._lock = threading.Lock()

    def add(self, size: int) -> None:
        """Count bytes that are now held, or, if negative, have been released."""
        with self._lock:
            self.taken += size

    @property
    def is_half_full(self) -> bool:
        """Whether data that can go to the disk should: the other half is for data that cannot."""
        return self.taken > self.size // 2

    @property
    def is_full(self) -> bool:
        """Whether more is held than should be."""
        return self.taken > self.size
