"""Whether this process can do its work: each lane's workers, and the database. Loop side, unless it says otherwise."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from typing import TYPE_CHECKING, Any

from threadbridge.bridge import Bridge
from threadbridge.lanes import Lane
from threadbridge.states import State

if TYPE_CHECKING:
    from threadbridge.pool import PoolGuard

# Seconds that a free worker, and the database, may take to answer.
WORKER_LIMIT = 1.0
DATABASE_LIMIT = 3.0


class Probe:
    """A job that only shows that a worker of the lane is there."""

    client = ""

    def __init__(self) -> None:
        self.has_run = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def claim(self) -> bool:
        """It is wanted. Worker side."""
        return True

    def run(self) -> None:
        """Say so. Worker side."""
        self._loop.call_soon_threadsafe(self.has_run.set)


async def lane_answers(bridge: Bridge, lane: Lane) -> bool:
    """Whether a worker of the lane answers, or serves a request whose deadline is not over."""
    if lane.free:
        probe = Probe()
        lane.submit(probe)
        try:
            await asyncio.wait_for(probe.has_run.wait(), WORKER_LIMIT)
            return True
        except TimeoutError:
            lane.withdraw(probe)
    # Others were served first, or nobody is.
    now = time.monotonic()
    return any(
        exchange.lane is lane
        and (
            exchange.state is State.RESPONDING
            or (exchange.state is State.RUNNING and now < (exchange.running.deadline or now))
        )
        for exchange in bridge.exchanges
    )


class DatabaseCheck:
    """Asks the pool for a connection, in a thread: at most one at a time, however often it is wanted.

    :param pool: a ``PooledDB``.
    :param guard: its guard.
    """

    def __init__(self, pool: Any, guard: PoolGuard) -> None:
        self._pool = pool
        self._guard = guard
        self._asking: asyncio.Future[str] | None = None

    async def finding(self) -> tuple[bool, str]:
        """Whether a connection can be had within `DATABASE_LIMIT`, or all work for requests; and what to say of it."""
        if self._is_exhausted:
            return True, f"all {self._guard.size} connections are in use"
        if self._asking is None or self._asking.done():
            loop = asyncio.get_running_loop()
            self._asking = loop.create_future()
            # A daemon: one that hangs must not keep the process from ending.
            arguments = (self._asking, loop)
            threading.Thread(target=self._ask, args=arguments, name="threadbridge-check", daemon=True).start()
        try:
            problem = await asyncio.wait_for(asyncio.shield(self._asking), DATABASE_LIMIT)
        except TimeoutError:
            return self._is_exhausted, f"no connection within {DATABASE_LIMIT:g} s"
        return not problem, problem or "ok"

    @property
    def _is_exhausted(self) -> bool:
        return 0 < self._guard.size <= self._guard.in_use

    def _ask(self, asking: asyncio.Future[str], loop: asyncio.AbstractEventLoop) -> None:
        """A thread of its own."""
        try:
            connection = self._pool.connection()
            try:
                cursor = connection.cursor()
                cursor.execute("SELECT 1")
                cursor.fetchall()
                cursor.close()
            finally:
                connection.close()
            problem = ""
        except Exception as error:  # noqa: BLE001 - whatever the driver raises, there is no connection
            problem = f"{type(error).__name__}: {error}"
        # The loop may have ended meanwhile: nobody asks any more.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(asking.set_result, problem)
