"""What a client may demand of the server: sizes and times."""

from __future__ import annotations

from dataclasses import dataclass

# Seconds for which a refused connection is still read, and what arrives is thrown away: closing a connection with
# unread bytes resets it, and the reset may overtake the response (RFC 9112, section 9.6). These are nginx's
# lingering_timeout and lingering_time.
LINGER_PAUSE = 5.0
LINGER_TIME = 30.0
# Seconds for which idle connections stay open when the server drains, so that a request that a proxy has just sent is
# still answered.
DRAIN_LINGER = 1.0

# Connections that hold fewer bytes are not refused to free memory.
WORTH_REFUSING = 4096


@dataclass(frozen=True)
class Limits:
    """What a client may demand of a connection: sizes in bytes, times in seconds.

    The times count from the last byte that moved, except ``header_timeout``, which counts from a head's first byte.
    A byte of a response has moved when the client's system has acknowledged it, see `Sending`.
    """

    max_header_size: int = 65536
    max_body_size: int = 1024**3
    header_timeout: float = 30.0
    # Longer than nginx keeps an idle connection to an upstream (60), so that it is never closed under a request.
    idle_timeout: float = 75.0
    body_timeout: float = 60.0
    send_timeout: float = 60.0
    # The lowest average rate of a body in either direction, in bytes per second, like Apache's MinRate. It applies
    # after an initial time as long as the longest pause.
    min_rate: int = 500
    # The longest time for a body in either direction, whatever its rate. Here too, only the client's time counts.
    transfer_timeout: float = 14400.0
    # None: derived from the limit of file descriptors, see `Connections`.
    max_connections: int | None = None
    max_connections_per_client: int | None = None
