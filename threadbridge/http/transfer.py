"""Tracks how fast the body of a request arrives, and how fast a client reads its response."""

from __future__ import annotations

import math
from typing import Final

from threadbridge.http.limits import Limits, Memory
from threadbridge.http.socket_stream import SocketStream
from threadbridge.http.stream import PushStream

# How many times a waiting response is checked within the longest pause allowed to a client.
LOOKS: Final = 8


class Receiving:
    """The body of one request while it arrives. Only the client's time counts, not the server's pauses in reading."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        # Handlers can lower these two: the largest size, and the time by which the body must be complete.
        self.max_size = limits.max_body_size
        self.until = math.inf
        self._size = 0
        # When the body was first waited for; 0.0 before that.
        self._since = 0.0

    def accepts(self, size: int) -> bool:
        """Count a piece of the body; False if the body is now too large."""
        self._size += size
        return self._size <= self.max_size

    def resume(self, pause: float) -> None:
        """Read again, after a pause of so many seconds that is not the client's."""
        if self._since:
            self._since += pause

    def deadline(self, now: float) -> float:
        """Return the time by which the next piece must arrive."""
        if not self._since:
            self._since = now
        limits = self._limits
        by_rate = self._since + limits.body_timeout + self._size / limits.min_rate
        return min(now + limits.body_timeout, by_rate, self._since + limits.transfer_timeout, self.until)


class Sending:
    """A response that could not leave at once, and the time that its client takes to read it.

    Time counts only while bytes wait, not while the application produces the next piece. Bytes that the client's system
    has acknowledged count as taken. ``memory`` counts the waiting bytes.
    """

    def __init__(self, stream: SocketStream | PushStream, memory: Memory, limits: Limits) -> None:
        self._stream = stream
        self._memory = memory
        self._limits = limits
        # Bytes of memory that the waiting pieces take.
        self._held = 0
        # Whether bytes wait to be taken; since when, less the earlier waits; and the length of these.
        self.waits = False
        self._since = 0.0
        self._waited = 0.0
        # What the stream had sent when the wait began, less what was taken in earlier waits; and the latter.
        self._sent_before = 0
        self._taken = 0
        # When the stream had last sent more, and how much by then.
        self._moved_at = 0.0
        self._sent = 0

    def wait(self, now: float, size: int) -> float:
        """Count bytes that could not leave at once; returns the time for the next `look`."""
        self._held += size
        self._memory.add(size)
        if not self.waits:
            self.waits = True
            self._since = now - self._waited
            self._moved_at = now
            self._sent = self._stream.acknowledged()
            self._sent_before = self._sent - self._taken
        return self.look(now)

    def look(self, now: float) -> float:
        """Return the time for the next look; if that is not after ``now``, the client takes too long."""
        sent = self._stream.acknowledged()
        if sent > self._sent:
            self._sent = sent
            self._moved_at = now
        pause = self._limits.send_timeout
        by_rate = self._since + pause + (sent - self._sent_before) / self._limits.min_rate
        latest = min(self._moved_at + pause, by_rate, self._since + self._limits.transfer_timeout)
        return min(latest, now + pause / LOOKS)

    def has_left(self, now: float) -> None:
        """Stop the clock: all bytes have left."""
        self.release()
        if self.waits:
            self.waits = False
            self._waited = now - self._since
            self._taken = self._stream.acknowledged() - self._sent_before

    def release(self) -> None:
        """Take the bytes out of the account."""
        if self._held:
            self._memory.add(-self._held)
            self._held = 0
