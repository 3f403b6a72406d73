"""The other hosts of a remote lane: which of them gets a request, and the connections kept to them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable
from concurrent.futures import Executor
from typing import Final

from threadbridge.common.repeated_log import RepeatedLog
from threadbridge.crossing.lanes import Lane
from threadbridge.http.client_connection import ClientConnection, Origin, connect

logger = logging.getLogger("threadbridge")

# Idle connections kept to a host, and the seconds for which each is: less than hosts keep them (``idle_timeout``), so
# that none is closed under a request.
MOST_KEPT: Final = 64
KEPT_FOR: Final = 50.0
# Seconds for which a host that failed is left out; twice as long each time that it fails again, up to the longest.
LEFT_OUT: Final = 1.0
LONGEST_LEFT_OUT: Final = 30.0


class Host:
    """One of the other hosts. Loop side."""

    def __init__(self, origin: Origin, lane: str, resolver: Executor) -> None:
        self.name = str(origin)
        # Requests that are there now; and in all, those that it answered, refused unrun, and failed.
        self.running = 0
        self.answered = 0
        self.refused = 0
        self.failed = 0
        self._origin = origin
        self._lane = lane
        self._resolver = resolver
        # Failures since it last answered; until when it is left out, by `time.monotonic`; and the request that tries it
        # again after that.
        self._failures = 0
        self.out_until = 0.0
        self._trial: object | None = None
        # The one used last is used next, so that those that are not needed are closed.
        self._kept: list[ClientConnection] = []
        self._open: set[ClientConnection] = set()
        self._sweeping: asyncio.TimerHandle | None = None
        self._is_closed = False
        # It may fail with every second request.
        self._down_log, self._up_log = RepeatedLog(logger), RepeatedLog(logger)

    @property
    def is_up(self) -> bool:
        """Whether it has not failed, or has answered since."""
        return not self._failures

    @property
    def connections(self) -> int:
        """How many connections to it are open."""
        return len(self._open)

    def may_be_tried(self, now: float) -> bool:
        """Return whether it gets requests: only one at a time while it has not answered since it failed."""
        return not self._failures or (now >= self.out_until and self._trial is None)

    def begin(self, request: object) -> None:
        """Count a request that is about to be sent."""
        self.running += 1
        if not self.is_up:
            self._trial = request

    def end(self, request: object) -> None:
        """Note that a request has ended here, in whatever way."""
        self.running -= 1
        if self._trial is request:
            self._trial = None

    def has_answered(self, is_refusal: bool) -> None:
        """Note that it has answered a request, or has refused it unrun."""
        if is_refusal:
            self.refused += 1
        else:
            self.answered += 1
        if self._failures:
            self._up_log.log(logging.INFO, "lane %s: the host %s answers again", self._lane, self.name)
            self._failures = 0

    def has_failed(self, reason: str) -> None:
        """Leave it out for a while."""
        self.failed += 1
        now = time.monotonic()
        if self._failures and now < self.out_until:
            # Requests that were there when it failed; or all hosts are left out, and it was tried all the same.
            return
        left_out = min(LONGEST_LEFT_OUT, LEFT_OUT * 2**self._failures)
        if not self._failures:
            message = "lane %s: the host %s is left out for a while: %s"
            self._down_log.log(logging.WARNING, message, self._lane, self.name, reason)
        self._failures = min(self._failures + 1, 10)
        self.out_until = now + left_out

    def take_kept(self) -> ClientConnection | None:
        """Return an idle connection that is still usable, if there is one."""
        while self._kept:
            connection = self._kept.pop()
            if connection.is_usable:
                return connection
            connection.close()
        return None

    async def connect(self) -> ClientConnection:
        """Open another connection. Raises ``OSError``."""
        connection = ClientConnection(await connect(self._origin, self._resolver), self._on_closed)
        self._open.add(connection)
        return connection

    def keep(self, connection: ClientConnection) -> None:
        """Keep an idle connection for the next request, or close it."""
        if self._is_closed or len(self._kept) >= MOST_KEPT:
            connection.close()
            return
        loop = asyncio.get_running_loop()
        connection.idle_since = loop.time()
        self._kept.append(connection)
        if self._sweeping is None:
            self._sweeping = loop.call_later(KEPT_FOR, self._sweep)

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        self._sweeping = None
        too_old = [each for each in self._kept if each.idle_since <= loop.time() - KEPT_FOR]
        # The oldest are first. Now, since one that had closed before it was kept does not tell again.
        count = len(too_old)
        del self._kept[:count]
        for connection in too_old:
            connection.close()
        if self._kept:
            self._sweeping = loop.call_at(self._kept[0].idle_since + KEPT_FOR, self._sweep)

    def _on_closed(self, connection: ClientConnection) -> None:
        self._open.discard(connection)
        if connection in self._kept:
            self._kept.remove(connection)

    def close(self) -> None:
        """Close all connections; the requests on them are not told."""
        self._is_closed = True
        if self._sweeping is not None:
            self._sweeping.cancel()
            self._sweeping = None
        for connection in list(self._open):
            connection.close()


class Upstream:
    """The hosts of a remote lane. Loop side."""

    def __init__(self, lane: Lane, resolver: Executor) -> None:
        self.lane = lane
        self.hosts = [Host(origin, lane.name, resolver) for origin in lane.upstream]
        self._next = 0

    def next(self, tried: Iterable[Host]) -> Host | None:
        """Return the host for a request that these have not taken; None if there is no other.

        It is the one with the fewest requests, in turn, of those that are not left out; only if all are, one of these.
        """
        rest = [host for host in self.hosts if host not in tried]
        if not rest:
            return None
        now = time.monotonic()
        candidates = [host for host in rest if host.may_be_tried(now)]
        if not candidates:
            return min(rest, key=lambda host: host.out_until)
        fewest = min(host.running for host in candidates)
        candidates = [host for host in candidates if host.running == fewest]
        self._next += 1
        return candidates[self._next % len(candidates)]

    @property
    def is_up(self) -> bool:
        """Whether any host may be expected to answer."""
        now = time.monotonic()
        return any(host.may_be_tried(now) for host in self.hosts)

    def close(self) -> None:
        """Close all connections."""
        for host in self.hosts:
            host.close()
