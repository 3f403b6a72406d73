"""Which requests may read from a replica, and the cookie that says when a client has last changed something.

All times are seconds since 1970 by the primary's clock: frontends with different clocks agree on it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Final, Protocol

from tornado.httputil import HTTPHeaders

COOKIE: Final = "threadbridge_changed"
# They change nothing that a client depends on (RFC 9110, section 9.2.1).
READING_METHODS: Final = frozenset({"GET", "HEAD"})

_MILLISECONDS: Final = re.compile(rf"(?:\A|; ?){COOKIE}=([0-9]{{1,15}})(?:\Z|;)").search


class Replica(Protocol):
    """What the lanes and requests need to know of a replica. Any thread."""

    # Seconds that it may be behind.
    max_lag: float

    @property
    def now(self) -> float:
        """The time by the primary's clock, or a little later."""

    def may_read(self, changed_at: float) -> bool:
        """Whether it has what a client changed at this time, and is not too far behind for anybody."""

    def begin(self, changed_at: float) -> bool:
        """Like `may_read`; counts a request that reads there, or on the primary instead."""

    def leave(self) -> None:
        """Count a request that has begun to read there as one on the primary."""


def changed_at(headers: HTTPHeaders) -> float:
    """When the client has last changed something, by its cookie; 0.0 if it has none. Loop side."""
    if "Cookie" not in headers:
        return 0.0
    found = _MILLISECONDS(headers["Cookie"])
    return 0.0 if found is None else int(found[1]) / 1000


def change_cookie(replicas: Iterable[Replica], is_committed: bool, earlier: float) -> str:
    """The value of ``Set-Cookie`` for a request that has changed something. Either side.

    If a transaction is still open, nobody knows when it will be committed: the cookie counts as long again.

    :param earlier: what `changed_at` says of the request. If it counts for longer, it stays.
    """
    known = tuple(replicas)
    now, lag = max(each.now for each in known), max(each.max_lag for each in known)
    latest = now + lag
    # A client may have invented a time that is later still.
    at = max(now, min(earlier, latest)) if is_committed else latest
    # Later, a replica without the change would be too far behind for all. Rounded up, as is the time.
    age = math.ceil(at - now + lag) + 1
    return f"{COOKIE}={math.ceil(1000 * at)}; Max-Age={age}; Path=/; HttpOnly; SameSite=Lax"
