"""Which routes use the database: learned from who asks the pool for a connection."""

from __future__ import annotations

import re
import threading
from collections import OrderedDict

# More than any application has; what is beyond was made up by clients, and the least used are forgotten.
MAX_ROUTES = 1000
# Routes whose paths differ only beyond this are one: what clients make up takes no more memory than that.
MAX_SHAPE = 200

_DIGITS = re.compile(r"[0-9]+")


class Route:
    """What is known of the requests of one method whose paths have one shape."""

    __slots__ = ("probing", "uses_pool")

    def __init__(self) -> None:
        # None: not known yet.
        self.uses_pool: bool | None = None
        self.probing = False


class Routes:
    """The routes that have been asked for, by method and shape of the path: digits in it are all the same.

    Guarded by a lock that is held for a few instructions; the loop looks routes up, workers report what they saw.
    """

    def __init__(self) -> None:
        self._routes: OrderedDict[tuple[str, str], Route] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._routes)

    def find(self, method: str, path: str) -> Route:
        """The route of a request, made if it is new. Loop side."""
        key = (method[:MAX_SHAPE], _DIGITS.sub("0", path[:MAX_SHAPE]))
        with self._lock:
            route = self._routes.get(key)
            if route is None:
                route = self._routes[key] = Route()
                if len(self._routes) > MAX_ROUTES:
                    self._routes.popitem(last=False)
            else:
                self._routes.move_to_end(key)
            return route

    def begin_probe(self, route: Route) -> bool:
        """Whether this request may find out about a new route; only one at a time may. Loop side."""
        with self._lock:
            if route.uses_pool is not None or route.probing:
                return False
            route.probing = True
            return True

    def asked(self, route: Route) -> bool:
        """A request of the route has asked for a connection: it belongs to the pool's lane for good. Worker side.

        Whether others of the route may be in the quick lane now.
        """
        with self._lock:
            misjudged = route.uses_pool is False or (route.uses_pool is None and route.probing)
            route.uses_pool = True
            return misjudged

    def give_up_probe(self, route: Route) -> None:
        """The probe has ended without having run. Loop side."""
        with self._lock:
            route.probing = False

    def ended(self, route: Route, was_probe: bool) -> None:
        """A request of the route has run; had it asked for a connection, that were known. Either side."""
        with self._lock:
            if was_probe:
                route.probing = False
            if route.uses_pool is None:
                route.uses_pool = False
