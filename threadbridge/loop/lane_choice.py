"""The choice of a request's lane: by its path, or by what earlier requests of its route have done."""

from __future__ import annotations

from collections.abc import Sequence

from threadbridge.crossing.costs import Costs
from threadbridge.crossing.lanes import Lane, compiled
from threadbridge.crossing.routes import Route, Routes

# For requests that need no database, and for finding out whether a new route does. Short requests need few threads.
QUICK_THREADS = 4


class LaneChoice:
    """The lanes of a bridge and the choice between them.

    :param lanes: lanes for certain paths; the first that matches is taken.
    :param threads: the width of the lane for all other requests, called ``pool`` with a pool and ``default`` without.
    :param has_pool: requests of routes that do not ask the pool for a connection go to a lane called ``quick``.
    :param routes: all that are known.
    :param costs: what requests cost, for all but the lanes for certain paths; None: there clients take turns, too.
    :param short_paths: patterns of paths whose requests count as short; those of ``long_paths`` count as long.

    Raises ``ValueError`` when two lanes have the same name.
    """

    def __init__(
        self,
        lanes: Sequence[Lane],
        *,
        threads: int,
        queue: int,
        has_pool: bool,
        routes: Routes,
        costs: Costs | None,
        short_paths: Sequence[str],
        long_paths: Sequence[str],
    ) -> None:
        self._explicit = tuple(lanes)
        self._has_pool = has_pool
        self._routes = routes
        self._is_pinned = bool(short_paths or long_paths)
        self._is_short, self._is_long = compiled(*short_paths), compiled(*long_paths)
        self.main = Lane("pool" if has_pool else "default", threads=threads, queue=queue, costs=costs)
        self._quick = Lane("quick", threads=QUICK_THREADS, queue=queue, costs=costs) if has_pool else self.main
        self.all = (*self._explicit, *([self._quick] if has_pool else []), self.main)
        names = [lane.name for lane in self.all]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two lanes are named {name!r}; give each a name of its own")

    def choose(self, method: str, path: str) -> tuple[Lane, Route | None, bool]:
        """Return the lane, the route to learn about, and whether the request finds out if that uses the pool."""
        for lane in self._explicit:
            if lane.matches(path):
                return lane, None, False
        route = self._routes.find(method, path)
        if not self._has_pool:
            return self.main, route, False
        if route.uses_pool is False:
            return self._quick, route, False
        if route.uses_pool is None and self.may_probe() and self._routes.begin_probe(route):
            return self._quick, route, True
        return self.main, route, False

    def pinned_class(self, path: str) -> str:
        """Return the class that the settings give to requests for this path, or ""."""
        if not self._is_pinned:
            return ""
        return "short" if self._is_short(path) else "long" if self._is_long(path) else ""

    def is_quick(self, lane: Lane) -> bool:
        """Return whether requests of this lane are expected to leave the pool alone."""
        return lane is self._quick and lane is not self.main

    def may_probe(self) -> bool:
        """Return whether the quick lane has a thread for a probe."""
        # The last free one is for requests that are known to be quick.
        return self._quick.free >= 2
