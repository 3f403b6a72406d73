"""The desk: the guards of all pools that one application uses, as one."""

from __future__ import annotations

import re
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from threadbridge.common import forks
from threadbridge.crossing.current import current_or_none

if TYPE_CHECKING:
    from threadbridge.crossing.current import TrackedRequest
    from threadbridge.database.guard import Guard
    from threadbridge.database.replica import Replica
    from threadbridge.database.stopper import Stopper


class Desk:
    """The guards of a bridge's pools, of which any thread may add more while the application runs.

    A lock guards all changes; the tuples are replaced as a whole, so any thread may read them without it.

    :param on_ask: called on the worker side with the guard and each request that asks it for a connection.
    :param options: those of each guard.
    """

    def __init__(self, on_ask: Callable[[Guard, TrackedRequest], None], **options: Any) -> None:
        self._on_ask = on_ask
        self._options = options
        # One for all; made for the first pool.
        self._stopper: Stopper | None = None
        # Those with a lane of their own.
        self.first: tuple[Guard, ...] = ()
        # The application may make pools without end, for example one for each of its customers, and drop them.
        self._later: tuple[weakref.ref[Guard], ...] = ()
        # Those that stand for the first pool, for requests of certain lanes.
        self.replicas: tuple[Replica, ...] = ()
        self._has_begun = self._is_closed = False
        self._run_directory: str | None = None
        self._lock = threading.Lock()
        forks.copies(self)

    def become_copy(self) -> None:
        """This is a forked process: another thread may have held the lock. The guards renew what is theirs."""
        self._lock = threading.Lock()

    def __iter__(self) -> Iterator[Guard]:
        """Yield the guards; those of pools that the application has dropped are gone. Any thread."""
        yield from self.first
        for replica in self.replicas:
            yield replica.guard
        for reference in self._later:
            guard = reference()
            if guard is not None:
                yield guard

    def add(self, pool: object, *, is_first: bool = False) -> None:
        """Guard a pool, or several. Any thread. Raises as `make_guards`.

        Those that are not among the first must keep their guards alive: the desk does not.
        """
        made = self._guards(pool)
        with self._lock:
            taken = {guard.key for guard in self}
            for guard in made:
                self._name(guard, taken)
            if is_first:
                self.first += tuple(made)
            else:
                alive = [reference for reference in self._later if reference() is not None]
                self._later = (*alive, *map(weakref.ref, made))

    def add_replica(self, pool: object, lane: str, max_lag: float) -> Replica:
        """Guard a pool that stands for the first one in the lane of this name. Before requests come.

        Raises ``ValueError``, also if there is no pool for which it could stand.
        """
        # Not above: few have replicas.
        from threadbridge.database.replica import Replica

        if not self.first:
            raise ValueError(f"lane {lane}: its pool stands for the application's own, but there is none; give pool=")
        made = self._guards(pool, is_replica=True)
        if len(made) != 1:
            for guard in made:
                guard.close()
            raise ValueError(
                f"lane {lane}: pool={pool!r} has {len(made)} pools; give the one that leads to the replica"
            )
        [guard] = made
        guard.key = lane
        primary = self.first[0]
        replica = Replica(lane, primary, guard, max_lag)
        replica.stands_in = primary.hand_out_for(guard)
        with self._lock:
            self._name(guard, {each.key for each in self})
            self.replicas += (replica,)
        return replica

    def _guards(self, pool: object, **options: Any) -> list[Guard]:
        # Not above: a bridge without a pool needs none of it.
        from threadbridge.database.pools import make_guards
        from threadbridge.database.stopper import Stopper

        with self._lock:
            stopper = self._stopper = self._stopper or Stopper()
        return make_guards(pool, self._on_ask, stopper=stopper, **self._options, **options)

    def _name(self, guard: Guard, taken: set[str]) -> None:
        """Give a new guard a key of its own; let it begin, or end, like the others. Under the lock."""
        guard.key = _unique(guard.key, taken)
        taken.add(guard.key)
        if self._has_begun:
            guard.connections.begin(self._run_directory)
        if self._is_closed:
            guard.close()

    def watch_replicas(self) -> None:
        """Begin to watch the replicas. Any thread; more than once does no harm."""
        for replica in self.replicas:
            replica.watch()

    def begin(self, directory: str | None) -> None:
        """Begin to look for what killed processes left running. Any thread; see `ConnectionList.begin`."""
        with self._lock:
            self._has_begun, self._run_directory = True, directory
            guards = list(self)
        for guard in guards:
            guard.connections.begin(directory)

    @property
    def stopper(self) -> Stopper:
        """What stops the queries, once there has been a pool. Any thread."""
        assert self._stopper is not None
        return self._stopper

    def is_outage(self, error: BaseException) -> bool:
        """Whether the error means that one of the databases cannot be reached, or cannot do its work for now."""
        request = current_or_none()
        # What the primary could not do for now, a replica never does: to change something.
        not_asked = self.first[:1] if request is not None and request.reads_replica() else ()
        return any(guard.is_outage(error) for guard in self if guard not in not_asked)

    def abandon(self, request: TrackedRequest) -> tuple[int, int]:
        """Cut the connections of a request whose thread does not come back. Any thread; see `Guard.abandon`."""
        cut = kept = 0
        for guard in self:
            of_pool = guard.abandon(request)
            cut, kept = cut + of_pool[0], kept + of_pool[1]
        return cut, kept

    def close(self) -> None:
        """End the guards' threads; other guards may follow. Any thread."""
        with self._lock:
            self._is_closed = True
            guards = list(self)
        for replica in self.replicas:
            replica.close()
        for guard in guards:
            guard.close()
        if self._stopper is not None:
            self._stopper.close()

    def leave(self) -> None:
        """Remove the lists of connections of which none is left. Any thread, once all workers have ended."""
        for guard in self:
            guard.leave()


def _unique(key: str, taken: set[str]) -> str:
    """A key that can be part of a lane's name and is not taken; by default a number."""
    name = re.sub(r"[^A-Za-z0-9_-]", "_", key)
    if name and name not in taken:
        return name
    number = len(taken) + 1
    while (numbered := f"{name}-{number}" if name else str(number)) in taken:
        number += 1
    return numbered
