"""The choice of a request's lane: by its path, or by what earlier requests of its route have done."""

from __future__ import annotations

from collections.abc import Sequence

from threadbridge.crossing.lanes import Lane
from threadbridge.crossing.routes import Route, Routes

# For requests that need no database, and for finding out whether a new route does. Short requests need few threads.
QUICK_THREADS = 4


class LaneChoice:
    """The lanes of a bridge and the choice between them.

    :param lanes: lanes for certain paths; the first that matches is taken.
    :param threads: the width of the lane for all other requests, called ``pool`` with a pool and ``default`` without.
    :param routes: with a pool: requests of routes that do not ask it for a connection go to a lane called ``quick``.

    Raises ``ValueError`` when two lanes have the same name.
    """

    def __init__(self, lanes: Sequence[Lane], *, threads: int, queue: int, routes: Routes | None) -> None:
        self._explicit = tuple(lanes)
        self._routes = routes
        self.main = Lane("default" if routes is None else "pool", threads=threads, queue=queue)
        self._quick = self.main if routes is None else Lane("quick", threads=QUICK_THREADS, queue=queue)
        self.all = (*self._explicit, *([] if routes is None else [self._quick]), self.main)
        names = [lane.name for lane in self.all]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two lanes are named {name!r}; give each a name of its own")

    def choose(self, method: str, path: str) -> tuple[Lane, Route | None, bool]:
        """Return the lane, the route to learn about, and whether the request finds out if that uses the pool."""
        for lane in self._explicit:
            if lane.matches(path):
                return lane, None, False
        if self._routes is None:
            return self.main, None, False
        route = self._routes.find(method, path)
        if route.uses_pool is False:
            return self._quick, route, False
        if route.uses_pool is None and self.may_probe() and self._routes.begin_probe(route):
            return self._quick, route, True
        return self.main, route, False

    def may_probe(self) -> bool:
        """Return whether the quick lane has a thread for a probe."""
        # The last free one is for requests that are known to be quick.
        return self._quick.free >= 2
