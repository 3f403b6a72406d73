"""The choice of a request's lane: by its path, or by what earlier requests of its route have done."""

from __future__ import annotations

from collections.abc import Sequence

from threadbridge.crossing.current import TrackedRequest
from threadbridge.crossing.lanes import Lane
from threadbridge.crossing.routes import Route, Routes

# For requests that need no database, and for finding out whether a new route does. Short requests need few threads.
QUICK_THREADS = 4


class LaneChoice:
    """The lanes of a bridge and the choice between them.

    :param lanes: lanes for certain paths; the first that matches is taken.
    :param threads: the width of the lane for all other requests, called ``pool`` with a pool and ``default`` without.
    :param learns: with a pool: requests of routes that do not ask it for a connection go to a lane called ``quick``.

    Raises ``ValueError`` when two lanes have the same name.
    """

    def __init__(self, lanes: Sequence[Lane], *, threads: int, queue: int, learns: bool) -> None:
        self._explicit = tuple(lanes)
        self._routes = Routes()
        self.main = Lane("pool" if learns else "default", threads=threads, queue=queue)
        self._quick = Lane("quick", threads=QUICK_THREADS, queue=queue) if learns else None
        self.all = (*self._explicit, *([self._quick] if self._quick else []), self.main)
        names = [lane.name for lane in self.all]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two lanes are named {name!r}; give each a name of its own")

    def choose(self, method: str, path: str) -> tuple[Lane, Route | None, bool]:
        """Return the lane, the route to learn about, and whether the request is its probe. Loop side.

        A probe is the request that finds out whether a new route uses the pool.
        """
        for lane in self._explicit:
            if lane.matches(path):
                return lane, None, False
        if self._quick is None:
            return self.main, None, False
        route = self._routes.find(method, path)
        if route.uses_pool is False:
            return self._quick, route, False
        if route.uses_pool is None and self.may_probe() and self._routes.begin_probe(route):
            return self._quick, route, True
        return self.main, route, False

    def may_probe(self) -> bool:
        """Return whether the quick lane has a thread for a probe. Loop side."""
        # The last free one is for requests that are known to be quick.
        return self._quick is not None and self._quick.free >= 2

    def asked(self, request: TrackedRequest) -> bool:
        """Note that the request asks for a connection: its route belongs to the main lane from now on. Worker side.

        Returns whether other requests of the route may be in the quick lane.
        """
        return request.route is not None and not request.route.uses_pool and self._routes.asked(request.route)

    def ran(self, route: Route | None, is_probe: bool) -> None:
        """Note that a request of the route has run, up to its response or to its end. Either side."""
        if route is not None and (is_probe or route.uses_pool is None):
            self._routes.ended(route, is_probe)

    def never_ran(self, route: Route | None, is_probe: bool) -> None:
        """Note that a request of the route has ended before it ran: another may be the probe. Loop side."""
        if route is not None and is_probe:
            self._routes.give_up_probe(route)
