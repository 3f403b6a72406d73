"""The choice of a request's lane: by its path, or by what earlier requests of its route have done."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from threadbridge.crossing.costs import Costs
from threadbridge.crossing.lanes import Lane, compiled
from threadbridge.crossing.routes import Route, Routes
from threadbridge.crossing.spool import DISK_THREADS

if TYPE_CHECKING:
    from threadbridge.database.guard import Guard

# For WebSockets that the application speaks itself, each of which holds a thread as long as it is open.
WEBSOCKETS = "websocket"
# For requests that need no database, and for finding out whether a new route does. Short requests need few threads.
QUICK_THREADS: Final = 4


class LaneChoice:
    """The lanes of a bridge and the choice between them.

    Without a pool, all requests but those for certain paths go to a lane called ``default``. With pools, requests of
    routes that do not ask for a connection go to a lane called ``quick``, and all others to the lane of their pool: it
    is called ``pool`` if there is one, and ``pool-KEY`` if there are several. A route that asks several pools goes to
    the lane of the one with the fewest connections; one of which nothing is known may go to that of the first. Requests
    that are long as far as is known go to a remote lane called ``long``, if there are hosts for them. Those that ask
    for a WebSocket go to a lane called ``websocket``, if there is one, unless a lane for their path runs them here.

    :param lanes: lanes for certain paths; the first that matches is taken.
    :param threads: the width of the lanes for all other requests; None: each pool's size.
    :param pools: the guards of the pools that have lanes. Requests that ask others have the first of these lanes.
    :param routes: all that are known.
    :param costs: what requests cost, for all but the lanes for certain paths; None: there clients take turns, too.
    :param short_paths: patterns of paths whose requests count as short; those of ``long_paths`` count as long.
    :param long_upstream: the URLs of the hosts for long requests.
    :param static: prefixes of paths whose requests are not for the application; a lane called ``static`` has them.
    :param websockets: how many WebSockets the application may speak itself at once.

    Raises ``ValueError`` when two lanes have the same name, or when nothing says how wide a lane is.
    """

    def __init__(
        self,
        lanes: Sequence[Lane],
        *,
        threads: int | None,
        pools: Sequence[Guard],
        queue: int,
        routes: Routes,
        costs: Costs | None,
        short_paths: Sequence[str],
        long_paths: Sequence[str],
        long_upstream: Sequence[str] = (),
        static: Sequence[str] = (),
        websockets: int = 0,
    ) -> None:
        self._explicit = tuple(lanes)
        self._static_prefixes = tuple(static)
        self.static: Lane | None = None
        if static:
            self.static = Lane("static", f"{static[0]}*", threads=DISK_THREADS, queue=queue)
        self._routes = routes
        self._is_pinned = bool(short_paths or long_paths)
        self._is_short, self._is_long = compiled(*short_paths), compiled(*long_paths)
        self._by_pool: dict[str, Lane] = {}
        for pool in pools:
            size = pool.size
            width = threads or size
            if not width:
                raise ValueError(
                    f"the pool is unlimited ({pool.name}); give threads= to limit how many requests run at once"
                )
            name = "pool" if len(pools) == 1 else f"pool-{pool.key}"
            self._by_pool[pool.key] = Lane(name, threads=width, connections=size, queue=queue, costs=costs)
        mains = tuple(self._by_pool.values())
        if not mains:
            if threads is None:
                raise ValueError("give pool= (a PooledDB) or threads=: one is required, to set concurrency")
            mains = (Lane("default", threads=threads, queue=queue, costs=costs),)
        self.main = mains[0]
        self._has_pool = bool(self._by_pool)
        self._quick = Lane("quick", threads=QUICK_THREADS, queue=queue, costs=costs) if self._has_pool else self.main
        # For long requests that may read from a replica.
        self.replica = next((lane for lane in self._explicit if lane.replica is not None), None)
        self.long = Lane("long", queue=queue, upstream=long_upstream) if long_upstream else None
        # A client that has to wait for a thread would rather try again: there is no telling when one ends.
        self.websockets = Lane(WEBSOCKETS, threads=websockets, queue=0) if websockets else None
        others = [lane for lane in (self.long, self.static, self.websockets) if lane is not None]
        # Those for all paths.
        self.general = (*([self._quick] if self._has_pool else []), *mains)
        self.all = (*self._explicit, *others, *self.general)
        names = [lane.name for lane in self.all]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two lanes are named {name!r}; give each a name of its own")

    def choose(
        self, method: str, path: str, is_forwarded: bool, takes_socket: bool = False
    ) -> tuple[Lane, Route | None, bool]:
        """Return the lane, the route to learn about, and whether the request finds out if that uses a pool.

        A request that another bridge has forwarded, or that takes over its connection, does not go to a remote lane.
        """
        if self.static is not None and path.startswith(self._static_prefixes):
            return self.static, None, False
        for lane in self._explicit:
            if not ((is_forwarded or takes_socket) and lane.upstream) and lane.matches(path):
                return lane, None, False
        if takes_socket and self.websockets is not None:
            return self.websockets, None, False
        route = self._routes.find(method, path)
        if route.uses_pool is None and self._has_pool and self.may_probe() and self._routes.begin_probe(route):
            return self._quick, route, True
        return self.usual(route), route, False

    def usual(self, route: Route) -> Lane:
        """Return the lane of the route's requests, as far as is known."""
        if route.uses_pool is False:
            return self._quick
        return self.main if route.lane is None else route.lane

    def lane_of(self, pool: str) -> Lane:
        """Return the lane of the requests that ask the pool with this key. Either side."""
        return self._by_pool.get(pool, self.main)

    def pinned_class(self, path: str) -> str:
        """Return the class that the settings give to requests for this path, or ""."""
        if not self._is_pinned:
            return ""
        return "short" if self._is_short(path) else "long" if self._is_long(path) else ""

    def is_quick(self, lane: Lane) -> bool:
        """Return whether requests of this lane are expected to leave the pools alone."""
        return lane is self._quick and lane is not self.main

    def may_probe(self) -> bool:
        """Return whether the quick lane has a thread for a probe."""
        # The last free one is for requests that are known to be quick.
        return self._quick.free >= 2
