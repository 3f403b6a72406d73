"""Limits for clients: sizes, times, and the memory of all connections."""

from __future__ import annotations

import threading
from dataclasses import dataclass

# Seconds for which to read and discard bytes after a refusal: closing a connection with unread bytes resets it, and the
# reset may overtake the response (RFC 9112, section 9.6). These are nginx's lingering_timeout and lingering_time.
LINGER_PAUSE = 5.0
LINGER_TIME = 30.0
# Seconds for which idle connections stay open when the server drains: a request may be on its way from a proxy.
DRAIN_LINGER = 1.0

# Connections that hold fewer bytes are not refused to free memory.
WORTH_REFUSING = 4096
MEMORY_SIZE = 32 * 1024**2
# Bytes taken from a connection at once.
READ_SIZE = 65536
# Smaller pieces of a body are joined: each object costs memory of its own.
SMALL_PIECE = 4096


@dataclass(frozen=True)
class Limits:
    """Limits for each connection: sizes in bytes, times in seconds since the last byte that moved.

    Each field is a setting, with its meaning in docs/settings.md.
    """

    max_header_size: int = 65536
    max_body_size: int = 1024**3
    # Since the head's first byte.
    header_timeout: float = 30.0
    # Longer than nginx keeps an idle connection to an upstream (60), so that it is never closed under a request.
    idle_timeout: float = 75.0
    body_timeout: float = 60.0
    # A byte of a response moves when the client's system acknowledges it.
    send_timeout: float = 60.0
    # The lowest average rate of a body in either direction, in bytes per second, after an initial time as long as the
    # longest pause, like Apache's MinRate.
    min_rate: int = 500
    # The longest time for a body in either direction. Here too, only the client's time counts.
    transfer_timeout: float = 14400.0
    # None: derived from the limit of file descriptors, see `Connections`.
    max_connections: int | None = None
    max_connections_per_client: int | None = None


class Memory:
    """An account of bytes held by all connections. Beyond its bound, nothing fails, but holders must hold less.

    A bridge has one for requests until a worker has them, and one for responses that wait for their clients, so that
    clients that do not read cause no refused requests.
    """

    def __init__(self, size: int = MEMORY_SIZE) -> None:
        self.size = size
        self.taken = 0
        self._lock = threading.Lock()

    def add(self, size: int) -> None:
        """Count bytes that are now held, or, if negative, have been released. Any thread."""
        with self._lock:
            self.taken += size

    @property
    def is_half_full(self) -> bool:
        """Whether data should go to the disk if it can: the other half is for data that cannot. Any thread."""
        return self.taken > self.size // 2

    @property
    def is_full(self) -> bool:
        """Whether more is held than should be. Any thread."""
        return self.taken > self.size
