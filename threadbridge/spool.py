"""Bytes on their way from a worker to the loop, within a limit."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable


class ChannelClosed(Exception):
    """Raised by `Channel.put` when nobody takes from the channel any more."""


class Channel:
    """A queue of bytes with one writer (worker side) and one reader (loop side); the writer waits when it is full.

    :param limit: how many bytes may wait before the writer does.
    :param wake: called on the worker side when the reader, having found nothing, should look again.

    All state is guarded by one condition; the only wait on it is the writer's, and `close` ends it.
    """

    def __init__(self, limit: int, wake: Callable[[], None]) -> None:
        self._limit = limit
        self._wake = wake
        self._chunks: deque[bytes] = deque()
        self._size = 0
        self._reader_waits = False
        self._complete = False
        self._closed = False
        self._changed = threading.Condition(threading.Lock())

    def put(self, chunk: bytes) -> None:
        """Append a chunk, after waiting until there is room. Worker side.

        An empty channel takes a chunk of any size. Raises `ChannelClosed` once the reader has closed it, also while
        waiting.
        """
        with self._changed:
            while self._size and self._size + len(chunk) > self._limit and not self._closed:
                self._changed.wait()
            if self._closed:
                raise ChannelClosed
            self._chunks.append(chunk)
            self._size += len(chunk)
            wake, self._reader_waits = self._reader_waits, False
        if wake:
            self._wake()

    def complete(self) -> None:
        """Say that no further chunk will come. Worker side."""
        with self._changed:
            self._complete = True
            wake, self._reader_waits = self._reader_waits, False
        if wake:
            self._wake()

    def take(self) -> bytes | None:
        """All that waits; ``b""`` at the end; None when there is nothing yet: ``wake`` will be called. Loop side."""
        with self._changed:
            if not self._chunks:
                if self._complete:
                    return b""
                self._reader_waits = True
                return None
            chunks = b"".join(self._chunks)
            self._chunks.clear()
            self._size = 0
            self._changed.notify()
            return chunks

    def close(self) -> None:
        """Take no more: a waiting or later `put` raises `ChannelClosed`. Loop side."""
        with self._changed:
            self._closed = True
            self._chunks.clear()
            self._changed.notify()
