"""Whether this process can do its work: each lane's threads, and the database. Loop side, unless it says otherwise."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from threadbridge.common.threads import NOT_STARTED
from threadbridge.loop.bridge import Bridge

if TYPE_CHECKING:
    from threadbridge.database.pool import PoolGuard

# Seconds for which a statement that succeeded shows that the database answers.
LATELY = 2.0
# Seconds that the database may take to accept a connection and answer on it.
DATABASE_LIMIT = 2.0
# Seconds for which the answer to a check counts: however often it is wanted, the database is asked no more often.
FRESH = 0.5
# Seconds after which a check that hangs is left alone, and how many such may hang before no more are begun.
GIVE_UP_AFTER = 10.0
MOST_CHECKS = 3


@dataclass(frozen=True)
class Readiness:
    """Whether requests should be sent to a process, and what was found.

    :param draining: the process is about to end, which is no fault.
    """

    ready: bool
    draining: bool
    findings: tuple[str, ...]


async def readiness(bridge: Bridge, database: DatabaseHealth | None, draining: bool, asks_database: bool) -> Readiness:
    """What there is to say of this process; within `DATABASE_LIMIT`.

    :param asks_database: ask the database in any case, and not only when it is in doubt.
    """
    if draining:
        return Readiness(False, True, ("draining: this process is about to end",))
    can_run = {lane.name: bridge.can_run(lane) for lane in bridge.lanes}
    findings = [f"lane {name}: {'ok' if can else 'no thread can run'}" for name, can in can_run.items()]
    ready = all(can_run.values())
    if database is not None:
        problem = await database.problem(asks_database)
        findings.append(f"database: {problem or 'ok'}")
        ready = ready and not problem
    elif asks_database:
        findings.append("database: there is no pool to ask")
        ready = False
    return Readiness(ready, False, tuple(findings))


class DatabaseHealth:
    """Judges the database by what requests have seen of it, and asks it only when that leaves a doubt.

    A statement that succeeded within `LATELY` shows that the database answers. Otherwise, if connections are in use, or
    the last that was seen of the database was a failure, a thread connects apart from the pool: a long report is told
    from a database that hangs, and a database that is back is noticed without any request. A pool whose connections
    are all held by requests that nobody waits for is out of order even if the database answers new connections.

    :param guard: the guard of the bridge's pool.
    """

    def __init__(self, guard: PoolGuard) -> None:
        self._guard = guard
        # Since when all connections are held by such requests; 0.0: they are not.
        self._all_overdue_since = 0.0
        self._latest: _Check | None = None
        self._hanging: list[_Check] = []

    async def problem(self, always: bool) -> str:
        """What is wrong with the database, or ""; within `DATABASE_LIMIT`.

        :param always: ask the database also when no request has had to do with it.
        """
        guard = self._guard
        now = time.monotonic()
        succeeded_lately = now - guard.last_success < LATELY
        if 0 < guard.size <= guard.overdue() and not succeeded_lately:
            self._all_overdue_since = self._all_overdue_since or now
            if now - self._all_overdue_since >= LATELY:
                return f"all {guard.size} connections are held by requests that are cancelled or past their deadline"
        else:
            self._all_overdue_since = 0.0
        if succeeded_lately:
            return ""
        if always or guard.in_use or guard.last_outage > guard.last_success:
            return await self._asked(now)
        return ""

    async def _asked(self, now: float) -> str:
        check = self._latest
        if check is None or (check.done.done() and now - check.ended > FRESH) or check.hangs(now):
            if check is not None and not check.done.done():
                check.sever()
                self._hanging.append(check)
            self._hanging = [each for each in self._hanging if not each.done.done()]
            if len(self._hanging) >= MOST_CHECKS:
                return f"{len(self._hanging)} attempts to connect hang"
            try:
                check = self._latest = _Check(self._guard)
            except NOT_STARTED as error:
                return f"not asked: {error}"
        await asyncio.wait((check.done,), timeout=DATABASE_LIMIT)
        return (
            check.done.result() if check.done.done() else f"no answer to a new connection within {DATABASE_LIMIT:g} s"
        )


class _Check:
    """One attempt to connect and run a statement, in a daemon thread: one that hangs must not hold up the end.

    Raises one of `NOT_STARTED` when the thread cannot be started.
    """

    def __init__(self, guard: PoolGuard) -> None:
        self._guard = guard
        self._loop = asyncio.get_running_loop()
        self._began = time.monotonic()
        # Of its connection, while it has one; for others only under the lock.
        self._descriptor: int | None = None
        self._lock = threading.Lock()
        # What was wrong, or ""; and when that was known.
        self.done: asyncio.Future[str] = self._loop.create_future()
        self.ended = 0.0
        threading.Thread(target=self._ask, name="threadbridge-check", daemon=True).start()

    def hangs(self, now: float) -> bool:
        """Whether it has taken too long to be waited for."""
        return not self.done.done() and now - self._began > GIVE_UP_AFTER

    def sever(self) -> None:
        """Let the thread wait no more for an answer on the connection, if it has one."""
        # Not waiting for the lock: the thread has it while it closes the connection.
        if self._lock.acquire(blocking=False):
            try:
                if self._descriptor is not None:
                    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(self._descriptor)) as same:
                        same.shutdown(socket.SHUT_RDWR)
            finally:
                self._lock.release()

    def _ask(self) -> None:
        """The thread."""
        try:
            connection = self._guard.connect_apart()
            try:
                # Asked now: a driver does not answer while another thread uses the connection.
                self._descriptor = connection.fileno() if hasattr(connection, "fileno") else None
                cursor = connection.cursor()
                cursor.execute("SELECT 1")
                cursor.fetchall()
                cursor.close()
            finally:
                # Afterwards the number may be another file's.
                with self._lock:
                    self._descriptor = None
                    connection.close()
            problem = ""
        except Exception as error:  # noqa: BLE001 - whatever the driver raises, the database cannot be used
            problem = f"{type(error).__name__}: {error}"
        # The loop may have ended meanwhile: nobody asks any more.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._end, problem)

    def _end(self, problem: str) -> None:
        self.ended = time.monotonic()
        self.done.set_result(problem)
