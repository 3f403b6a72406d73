"""Tracks how fast the body of a request arrives, and how fast a client reads its response."""

from __future__ import annotations

import math

from threadbridge.http.limits import Limits, Memory
from threadbridge.http.stream import PushStream

# How many times a waiting response is checked within the longest pause allowed to a client.
LOOKS = 8


class Receiving:
    """The body of one request while it arrives. Only the client's time counts, not the server's pauses in reading.

    :param limits: the server's limits. A handler can lower them for its request.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.max_size = limits.max_body_size
        # The time by which the body must be complete, in addition to the limits.
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

    :param memory: the account that counts the waiting bytes.

    Time counts only while bytes wait to be taken: an application may take as long as it likes between its pieces. Bytes
    that the client's system has acknowledged count as taken.
    """

    def __init__(self, stream: PushStream, memory: Memory, limits: Limits) -> None:
        self._stream = stream
        self._memory = memory
        self._limits = limits
        # Bytes of memory that the waiting pieces take.
        self._held = 0
        # When bytes began to wait; 0.0 if none do. The bytes that the stream had sent by then, and at the last look.
        self._since = 0.0
        self._sent_before = 0
        self._sent = 0
        self._moved_at = 0.0
        # The length of earlier waits in seconds, and the bytes that were taken in them.
        self._waited = 0.0
        self._taken = 0

    @property
    def waits(self) -> bool:
        """Whether bytes wait to be taken."""
        return self._since > 0.0

    def wait(self, now: float, size: int) -> float:
        """Count bytes that could not leave at once; returns the time for the next `look`."""
        self._held += size
        self._memory.add(size)
        if not self._since:
            self._since = self._moved_at = now
            self._sent_before = self._sent = self._stream.acknowledged()
        return self.look(now)

    def look(self, now: float) -> float:
        """Return the time for the next look; if that is not after ``now``, the client takes too long."""
        sent = self._stream.acknowledged()
        if sent > self._sent:
            self._sent = sent
            self._moved_at = now
        taken = self._taken + sent - self._sent_before
        pause = self._limits.send_timeout
        allowed = min(pause + taken / self._limits.min_rate, self._limits.transfer_timeout)
        latest = min(self._moved_at + pause, self._since + allowed - self._waited)
        return min(latest, now + pause / LOOKS)

    def has_left(self, now: float) -> None:
        """Stop the clock: all bytes have left."""
        self.release()
        if self._since:
            self._waited += now - self._since
            self._taken += self._stream.acknowledged() - self._sent_before
            self._since = 0.0

    def release(self) -> None:
        """Take the bytes out of the account."""
        if self._held:
            self._memory.add(-self._held)
            self._held = 0
