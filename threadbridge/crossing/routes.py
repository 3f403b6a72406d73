"""The routes of an application: which of them use which pool, and what their requests cost."""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from typing import Final

from threadbridge.crossing.cost_cells import Cell
from threadbridge.crossing.costs import MAX_CELLS, Costs
from threadbridge.crossing.lanes import Lane

# More than any application has. Clients can make up paths: beyond this, or when too much is known of their costs, the
# routes used longest ago are forgotten.
MAX_ROUTES: Final = 1000
# Routes whose paths differ only after this many characters are one, which bounds the memory they take.
MAX_SHAPE: Final = 200

_DIGITS: Final = re.compile(r"[0-9]+")


class Route:
    """The requests of one method whose paths have one shape."""

    def __init__(self) -> None:
        # Whether it has asked a pool for a connection; None: not known yet.
        self.uses_pool: bool | None = None
        # That of the pool with the fewest connections among those that it has asked.
        self.lane: Lane | None = None
        self.probing = False
        self.cost = Cell()


class Routes:
    """The known routes, by method and path, in which all numbers count as the same. A lock guards them."""

    def __init__(self, costs: Costs) -> None:
        self._costs = costs
        self._routes: OrderedDict[tuple[str, str], Route] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._routes)

    def find(self, method: str, path: str) -> Route:
        """Return the route of a request; make it if it is new. Loop side."""
        key = (method[:MAX_SHAPE], _DIGITS.sub("0", path[:MAX_SHAPE]))
        with self._lock:
            route = self._routes.get(key)
            if route is None:
                # With the routes, their costs are forgotten: there must be room for those of others.
                if len(self._routes) >= MAX_ROUTES or (self._routes and self._costs.cells >= MAX_CELLS):
                    self._costs.forget(self._routes.popitem(last=False)[1].cost)
                route = self._routes[key] = Route()
                # The next to go until it is seen again: paths that clients make up drive out only one another.
                self._routes.move_to_end(key, last=False)
            else:
                self._routes.move_to_end(key)
                if self._costs.lacks_room:
                    self._costs.make_room([each.cost for each in self._routes.values()])
            return route

    def all(self) -> list[tuple[str, str, Route]]:
        """Return each route with its method and the shape of its path, the next to be forgotten first. Any thread."""
        with self._lock:
            return [(method, path, route) for (method, path), route in self._routes.items()]

    def add(self, method: str, path: str) -> Cell | None:
        """Return the costs of the route, which is added, as the next to be forgotten, if there is room. Any thread."""
        key = (method, path)
        with self._lock:
            route = self._routes.get(key)
            if route is None:
                if len(self._routes) >= MAX_ROUTES:
                    return None
                route = self._routes[key] = Route()
                self._routes.move_to_end(key, last=False)
            return route.cost

    def begin_probe(self, route: Route) -> bool:
        """Return whether this request may be the probe of a new route; only one at a time may. Loop side."""
        with self._lock:
            if route.uses_pool is not None or route.probing:
                return False
            route.probing = True
            return True

    def asked(self, route: Route, lane: Lane) -> bool:
        """Note that the route uses the pool of this lane; returns whether that is its lane from now on. Worker side."""
        if _is_narrower(route.lane, lane):
            return False
        with self._lock:
            if _is_narrower(route.lane, lane):
                return False
            # In this order: the loop reads both without the lock.
            route.lane = lane
            route.uses_pool = True
            return True

    def never_ran(self, route: Route | None, was_probe: bool) -> None:
        """Note that a request of the route has ended before it ran: another may be the probe. Loop side."""
        if route is not None and was_probe:
            with self._lock:
                route.probing = False

    def ran(self, route: Route | None, was_probe: bool) -> None:
        """Note that a request of the route has run, up to its response or to its end. Either side."""
        if route is None or not (was_probe or route.uses_pool is None):
            return
        with self._lock:
            if was_probe:
                route.probing = False
            # If it had asked for a connection, this would be true.
            if route.uses_pool is None:
                route.uses_pool = False


def _is_narrower(lane: Lane | None, other: Lane) -> bool:
    """Return whether the lane is the other one, or has no more connections."""
    return lane is not None and (lane is other or lane.connections <= other.connections)
