"""Tracks how fast a client reads a response once sending blocks."""

from __future__ import annotations

from threadbridge.http.memory import Memory
from threadbridge.http.stream import PushStream

# How many times it is checked within the longest pause allowed to a client.
LOOKS = 8


class Sending:
    """A response that could not leave at once, and the time that its client takes to read it.

    :param memory: the account that counts the waiting bytes.
    :param pause: the longest time in seconds in which the client may take nothing.
    :param rate: the lowest average rate in bytes per second, after an initial time as long as ``pause``.
    :param in_all: the longest time in seconds for which the client may keep the server waiting in all.

    Time counts only while bytes wait to be taken: an application may take as long as it likes between its pieces. Bytes
    that the client's system has acknowledged count as taken.
    """

    def __init__(self, stream: PushStream, memory: Memory, pause: float, rate: int, in_all: float) -> None:
        self._stream = stream
        self._memory = memory
        self._pause = pause
        self._rate = rate
        self._in_all = in_all
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
        allowed = min(self._pause + taken / self._rate, self._in_all)
        latest = min(self._moved_at + self._pause, self._since + allowed - self._waited)
        return min(latest, now + self._pause / LOOKS)

    def has_left(self, now: float) -> None:
        """All bytes have left."""
        self.release()
        if self._since:
            self._waited += now - self._since
            self._taken += self._stream.acknowledged() - self._sent_before
            self._since = 0.0

    def release(self) -> None:
        """Take the bytes out of the account."""
        held, self._held = self._held, 0
        if held:
            self._memory.add(-held)
