"""Tracks how fast a client reads a response once sending blocks."""

from __future__ import annotations

from threadbridge.http.memory import Memory
from threadbridge.http.stream import PushStream

# How many times it is checked within the longest pause allowed to a client.
LOOKS = 8


class Sending:
    """One response that could not leave at once, with the time that its client takes for it. Loop side.

    :param memory: the account in which what waits is counted.
    :param pause: seconds for which nothing may move.
    :param rate: bytes a second that must be taken on average, after as long a start as a pause may take.
    :param in_all: seconds for which the client may keep the server waiting in all.

    Only the time counts in which something waits to be taken: an application may take as long as it likes between its
    pieces. What has arrived at the client's system counts as taken.
    """

    def __init__(self, stream: PushStream, memory: Memory, pause: float, rate: int, in_all: float) -> None:
        self._stream = stream
        self._memory = memory
        self._pause = pause
        self._rate = rate
        self._in_all = in_all
        # Bytes of memory that what waits takes.
        self._held = 0
        # When it began to wait; 0.0: nothing waits. What the stream had sent by then, and at the last look.
        self._since = 0.0
        self._sent_before = 0
        self._sent = 0
        self._moved_at = 0.0
        # Seconds, and what was taken in them, of the times before.
        self._waited = 0.0
        self._taken = 0

    @property
    def waits(self) -> bool:
        """Whether something waits to be taken."""
        return self._since > 0.0

    def wait(self, now: float, size: int) -> float:
        """So many bytes could not leave at once; the time for the next `look`."""
        self._held += size
        self._memory.add(size)
        if not self._since:
            self._since = self._moved_at = now
            self._sent_before = self._sent = self._stream.acknowledged()
        return self.look(now)

    def look(self, now: float) -> float:
        """The time for the next look; if that is not after ``now``, the client takes too long."""
        sent = self._stream.acknowledged()
        if sent > self._sent:
            self._sent = sent
            self._moved_at = now
        taken = self._taken + sent - self._sent_before
        allowed = min(self._pause + taken / self._rate, self._in_all)
        latest = min(self._moved_at + self._pause, self._since + allowed - self._waited)
        return min(latest, now + self._pause / LOOKS)

    def has_left(self, now: float) -> None:
        """Nothing waits any more."""
        self.release()
        if self._since:
            self._waited += now - self._since
            self._taken += self._stream.acknowledged() - self._sent_before
            self._since = 0.0

    def release(self) -> None:
        """Count no memory any more."""
        held, self._held = self._held, 0
        if held:
            self._memory.add(-held)
