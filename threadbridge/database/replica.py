"""A replica: whether it has what clients have changed, and connections to it in place of those to the primary."""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

from threadbridge.common.repeated_log import RepeatedLog
from threadbridge.common.threads import NOT_STARTED
from threadbridge.crossing.current import TrackedRequest, current_or_none
from threadbridge.database.driver import ReplicatedDatabase, Replication
from threadbridge.database.guard import Guard

logger = logging.getLogger("threadbridge")
_unreachable = RepeatedLog(logger)

# Seconds between two looks.
INTERVAL = 1.0
# Seconds for which the replica may wait for what the primary has just committed.
PATIENCE = 0.5

_Connection = TypeVar("_Connection")


class Replica:
    """What is known of one replica. See `threadbridge.crossing.replicas.Replica`.

    A thread of its own asks the primary, once a second, for its time and what it has committed, and the replica whether
    it has that. So what is known does not depend on any clock but the primary's, nor on what a replica says of its own
    lag, and needs no privileges. Until something is proven, and when the proof is too old, nothing is read from the
    replica.

    The thread owns the connections and ``_samples``. It replaces the other attributes as a whole, and any thread may
    read them. A lock guards the counts.

    :param lane: the name of the lane whose requests read from it.
    :param guard: that of its pool.
    :param max_lag: seconds that it may be behind.
    """

    def __init__(self, lane: str, primary: Guard, guard: Guard, max_lag: float) -> None:
        self.lane = lane
        self.guard = guard
        self.max_lag = max_lag
        # Whether the primary's pool hands out the replica's connections; otherwise the application must ask.
        self.stands_in = False
        self.read_here = self.read_on_primary = 0
        # What the latest look has found to be wrong.
        self.problem = "nothing is known yet"
        self._primary = primary
        # All that was committed before this time is on the replica; by the primary's clock, 0.0 if nothing is proven.
        # And when that was proven, by `time.monotonic`.
        self._proof = (0.0, 0.0)
        # What the primary's clock is ahead of `time.monotonic`, at most. Until it is known: this host's may be behind.
        self._ahead = time.time() - time.monotonic() + max_lag
        # Times by the primary's clock and positions, of which the replica has not reached any.
        self._samples: deque[tuple[float, str]] = deque()
        self._connections: dict[Guard, tuple[Any, Replication]] = {}
        # Whether the log says that requests read from it; None if it says nothing yet.
        self._told: bool | None = None
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    # For requests. Any thread.

    @property
    def now(self) -> float:
        return time.monotonic() + self._ahead

    @property
    def lag(self) -> float:
        """The seconds that it may be behind as far as is known; infinity if nothing is proven."""
        has_until = self._proof[0]
        return max(0.0, self.now - has_until) if has_until else math.inf

    def may_read(self, changed_at: float) -> bool:
        has_until, proven_at = self._proof
        return has_until > changed_at and self.lag <= self.max_lag and self.guard.last_outage <= proven_at

    def begin(self, changed_at: float) -> bool:
        may_read = self.may_read(changed_at)
        with self._lock:
            self.read_here += may_read
            self.read_on_primary += not may_read
        return may_read

    def leave(self) -> None:
        with self._lock:
            self.read_here -= 1
            self.read_on_primary += 1

    def hand_out(self, of_replica: Callable[[], _Connection], of_primary: Callable[[], _Connection]) -> _Connection:
        """Return a connection to the replica, or to the primary if the replica cannot be reached. Worker side.

        The request has sent nothing on that connection yet, so this repeats nothing.
        """
        try:
            return of_replica()
        except Exception as error:
            request = current_or_none()
            if request is None or request.cancelled or not self.guard.is_lost(error):
                raise
            # Others do not try either, until there is a new proof.
            self.guard.last_outage = time.monotonic()
            message = "request %s: cannot connect to the replica of the lane %s: %r; it reads from the primary"
            _unreachable.log(logging.WARNING, message, request.id, self.lane, error)
            request.leave_replica()
        return of_primary()

    # The thread.

    def watch(self) -> None:
        """Begin to look, unless that has begun. Any thread."""
        with self._lock:
            if self._thread is not None or self._closing.is_set():
                return
            thread = threading.Thread(target=self._watch, name=f"threadbridge-replica-{self.lane}", daemon=True)
            try:
                thread.start()
            except NOT_STARTED as error:
                # The next request tries again.
                _unreachable.log(
                    logging.ERROR, "lane %s: no thread could be started to watch its replica: %s", self.lane, error
                )
            else:
                self._thread = thread

    def close(self) -> None:
        """End the thread. Any thread; does not wait."""
        self._closing.set()

    def _watch(self) -> None:
        try:
            while True:
                self.problem = self.look()
                self._tell()
                if self._closing.wait(INTERVAL):
                    break
        finally:
            self._disconnect()

    def look(self) -> str:
        """Look once; return what is wrong, or "". In the thread, or in another one if there is none."""
        for guard, name, ask in (
            (self._primary, "primary", self._ask_primary),
            (self.guard, "replica", self._ask_replica),
        ):
            try:
                ask(*self._connection(guard))
            except ValueError as error:
                self._proof = (0.0, 0.0)
                return str(error)
            except Exception as error:  # noqa: BLE001 - whatever the driver raises, the connection is of no more use
                # Of the replica, nothing is read until it answers again; of the primary, while the proof is fresh.
                guard.last_outage = time.monotonic()
                self._disconnect()
                return f"the {name} cannot be asked: {error!r}"
        if self.lag <= self.max_lag:
            return ""
        if self.lag == math.inf:
            return "the replica does not have yet what the primary has committed"
        return f"the replica is {self.lag:.0f} s behind"

    def _connection(self, guard: Guard) -> tuple[Any, Replication]:
        if guard not in self._connections:
            made = guard.connect_apart()
            database = guard.database_of(made)
            if not isinstance(database, ReplicatedDatabase):
                made.close()
                raise ValueError("replicas of this kind of database are not supported; see docs/replicas.md")
            self._connections[guard] = (made, database.replication())
        return self._connections[guard]

    def _ask_primary(self, connection: Any, replication: Replication) -> None:
        began = time.monotonic()
        sample = replication.position(connection)
        # The primary read its clock later than this.
        self._ahead = sample[0] - began
        self._samples.append(sample)
        while self._samples[0][0] < sample[0] - self.max_lag:
            # Once the replica has this, it is still too far behind.
            self._samples.popleft()

    def _ask_replica(self, connection: Any, replication: Replication) -> None:
        began, newest = time.monotonic(), self._samples[-1]
        if replication.has_reached(connection, newest[1], PATIENCE):
            self._samples.clear()
            self._proof = (newest[0], began)
        while self._samples and replication.has_reached(connection, self._samples[0][1]):
            self._proof = (self._samples.popleft()[0], began)

    def _disconnect(self) -> None:
        while self._connections:
            _, (connection, _) = self._connections.popitem()
            # It may be lost.
            with contextlib.suppress(Exception):
                connection.close()

    def _tell(self) -> None:
        """Log whether requests read from it, if that has changed."""
        # While it is behind, or the primary cannot be asked, the proof may still be fresh enough.
        is_used = self.may_read(0.0)
        if is_used is self._told:
            return
        self._told = is_used
        if is_used:
            logger.info(
                "lane %s: reads from the replica %s, %.1f s behind at most", self.lane, self.guard.name, self.lag
            )
        else:
            message = "lane %s: reads from the primary, because %s (replica_lag is %g s)"
            why = self.problem or "a connection to the replica was lost"
            logger.warning(message, self.lane, why, self.max_lag)


def replica_of(request: TrackedRequest | None) -> Replica | None:
    """Return the replica from which the request reads; None if that is the primary. Worker side."""
    if request is None or not request.reads_replica():
        return None
    assert isinstance(request.replica, Replica)
    return request.replica
