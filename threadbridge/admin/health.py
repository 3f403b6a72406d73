"""Readiness: whether each lane has threads that can run, and whether the databases answer."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from threadbridge.common.threads import NOT_STARTED
from threadbridge.crossing.load import weight
from threadbridge.loop.bridge import Bridge

if TYPE_CHECKING:
    from threadbridge.database.guard import Guard

# Seconds for which a successful statement proves that the database answers.
LATELY = 2.0
# Seconds that the database may take to accept a connection and answer a query.
DATABASE_LIMIT = 2.0
# Seconds for which the result of a check holds: limits how often the database is asked.
FRESH = 0.5
# Seconds after which a check is abandoned, and how many abandoned ones may hang before no more are started.
GIVE_UP_AFTER = 10.0
MOST_CHECKS = 3


@dataclass(frozen=True)
class Readiness:
    """Whether requests should be sent to a process."""

    ready: bool
    # Whether the process is about to end, which is not a fault.
    draining: bool
    # The results of the checks, a line each.
    findings: tuple[str, ...]
    # How many per cent of its usual share of requests it can take; see `threadbridge.crossing.load`.
    weight: int = 100


def weight_of(processes: Sequence[Readiness]) -> int:
    """Return the weight of a server with these processes, over which its system spreads connections; 0 for none."""
    return round(sum(found.weight for found in processes) / max(1, len(processes)))


class Health:
    """Judges a bridge and the databases of its pools. Loop side."""

    def __init__(self, bridge: Bridge) -> None:
        self._bridge = bridge
        self._databases: weakref.WeakKeyDictionary[Guard, DatabaseHealth] = weakref.WeakKeyDictionary()

    async def readiness(self, draining: bool, asks_database: bool) -> Readiness:
        """The readiness of this process, within `DATABASE_LIMIT`; ``asks_database`` checks databases in any case.

        Of the databases, those must answer whose pools have lanes. The others may be one for each customer: without one
        of them the process serves most requests. They are mentioned if they are in trouble.
        """
        if draining:
            return Readiness(False, True, ("draining: this process is about to end",))
        bridge, desk = self._bridge, self._bridge.desk
        can_run = {lane.name: bridge.exchanges.can_run(lane) for lane in bridge.lanes if not lane.upstream}
        findings = [f"lane {name}: {'ok' if can else 'no thread can run'}" for name, can in can_run.items()]
        ready = all(can_run.values())
        guards = list(desk)
        problems = await asyncio.gather(
            *(self._of(guard).problem(guard, asks_database and guard in desk.first) for guard in guards)
        )
        for guard, problem in zip(guards, problems, strict=True):
            if problem or guard in desk.first:
                name = "database" if len(guards) == 1 else f"database {guard.key}"
                findings.append(f"{name}: {problem or 'ok'}")
                ready = ready and not (problem and guard in desk.first)
        if asks_database and not guards:
            findings.append("database: there is no pool to ask")
            ready = False
        # What follows is no reason for a 503. It comes last, because HAProxy's page shows only the beginning.
        # Requests of the other lanes are not sent elsewhere for this: all frontends would have it at the same time.
        findings += [
            f"lane {lane.name}: {'ok' if bridge.forwarding.is_up(lane) else 'no host answers'}"
            for lane in bridge.lanes
            if lane.upstream
        ]
        # There is always the primary.
        findings += [
            f"replica of lane {replica.lane}: {'ok' if replica.may_read(0.0) else f'not read from, {replica.problem}'}"
            for replica in desk.replicas
        ]
        return Readiness(ready, False, tuple(findings), weight(bridge.lane_choice.general, bridge.shared.costs))

    def _of(self, guard: Guard) -> DatabaseHealth:
        return self._databases.setdefault(guard, DatabaseHealth())


class DatabaseHealth:
    """Judges the database by the requests' statements, and queries it itself only in case of doubt.

    If none succeeded within `LATELY`, and connections are in use or the latest event was a failure, a thread makes a
    connection outside the pool: this tells a long report from a database that hangs, and notices a recovery without any
    request. If cancelled or overdue requests hold all connections, there is a problem even if new ones are accepted.
    It does not keep the pool alive.
    """

    def __init__(self) -> None:
        # Since when such requests have held all connections, in monotonic time; 0.0 if they do not.
        self._all_overdue_since = 0.0
        self._latest: _Check | None = None
        self._hanging: list[_Check] = []

    async def problem(self, guard: Guard, always: bool) -> str:
        """What is wrong with the database of this pool, or ""; queries it in case of doubt, or always."""
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
        if guard.knows_server and (always or guard.in_use or guard.last_outage > guard.last_success):
            return await self._check(guard, now)
        return ""

    async def _check(self, guard: Guard, now: float) -> str:
        check = self._latest
        if check is not None and not check.done.done() and now - check.began > GIVE_UP_AFTER:
            check.sever()
            self._hanging.append(check)
            check = self._latest = None
        if check is None or (check.done.done() and now - check.ended > FRESH):
            self._hanging = [each for each in self._hanging if not each.done.done()]
            if len(self._hanging) >= MOST_CHECKS:
                return f"{len(self._hanging)} attempts to connect hang"
            try:
                check = self._latest = _Check(guard)
            except NOT_STARTED as error:
                return f"not checked: {error}"
        await asyncio.wait((check.done,), timeout=DATABASE_LIMIT)
        if check.done.done():
            return check.done.result()
        return f"no answer to a new connection within {DATABASE_LIMIT:g} s"


class _Check:
    """One attempt to connect and run a statement, in a daemon thread: if it hangs, the process can still end.

    The thread makes, uses and closes the connection. Raises one of `NOT_STARTED` if the thread cannot be started.
    """

    def __init__(self, guard: Guard) -> None:
        self._loop = asyncio.get_running_loop()
        self.began = time.monotonic()
        # Of the connection, while there is one. The thread sets it; other threads may use it only under the lock.
        self._descriptor: int | None = None
        self._lock = threading.Lock()
        # The problem, or "", and when it was known. The loop sets both.
        self.done: asyncio.Future[str] = self._loop.create_future()
        self.ended = 0.0
        threading.Thread(target=self._ask, args=(guard,), name="threadbridge-check", daemon=True).start()

    def sever(self) -> None:
        """Shut the connection down, if there is one, so that the thread stops waiting for an answer."""
        # Do not wait for the lock: the thread holds it while it closes the connection.
        if self._lock.acquire(blocking=False):
            try:
                if self._descriptor is not None:
                    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(self._descriptor)) as same:
                        same.shutdown(socket.SHUT_RDWR)
            finally:
                self._lock.release()

    def _ask(self, guard: Guard) -> None:
        """Run in the thread."""
        problem = ""
        try:
            connection = guard.connect_apart()
            try:
                # Read now: other threads must not use the connection.
                self._descriptor = connection.fileno() if hasattr(connection, "fileno") else None
                with contextlib.closing(connection.cursor()) as cursor:
                    cursor.execute("SELECT 1")
                    cursor.fetchall()
            finally:
                # Once the connection is closed, the number may belong to another file.
                with self._lock:
                    self._descriptor = None
                    connection.close()
        except Exception as error:  # noqa: BLE001 - whatever the driver raises, the database is unusable
            problem = f"{type(error).__name__}: {error}"
        # The loop may have been closed in the meantime.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._end, problem)

    def _end(self, problem: str) -> None:
        self.ended = time.monotonic()
        self.done.set_result(problem)
