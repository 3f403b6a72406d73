"""Tracks the size of a request's body, and how fast it arrives."""

from __future__ import annotations

import math

from threadbridge.http.limits import Limits


class Receiving:
    """The body of one request while it arrives.

    :param limits: the server's limits. A handler can lower them for its request.

    Only the client's time counts: not that in which the server does not read.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.max_size = limits.max_body_size
        self._size = 0
        # When the body was first waited for; 0.0 before that.
        self._since = 0.0
        self._until = math.inf

    def set_max_size(self, max_size: int) -> None:
        """Lower the limit for the body's size. Raises ``ValueError`` above the server's limit."""
        if max_size > self._limits.max_body_size:
            raise ValueError(
                f"the server accepts bodies of at most {self._limits.max_body_size} bytes; to allow more, give it "
                f"limits=Limits(max_body_size={max_size})"
            )
        self.max_size = max_size

    def end_at(self, until: float) -> None:
        """Set the time by which the body must be complete, in addition to the limits."""
        self._until = until

    def accepts(self, size: int) -> bool:
        """Count a piece of the body; False if the body is now too large."""
        self._size += size
        return self._size <= self.max_size

    def resume(self, pause: float) -> None:
        """The server reads again, after it has not read for ``pause`` seconds."""
        if self._since:
            self._since += pause

    def deadline(self, now: float) -> float:
        """Return the time by which the next piece must arrive."""
        if not self._since:
            self._since = now
        limits = self._limits
        by_rate = self._since + limits.body_timeout + self._size / limits.min_rate
        in_all = min(self._since + limits.transfer_timeout, self._until)
        return min(now + limits.body_timeout, by_rate, in_all)
