"""What has been learned of the costs of requests, as a table: that of one process, and those of several as one."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from typing import Any

from threadbridge.crossing.cost_cells import CAUTION, Cell
from threadbridge.crossing.costs import Costs
from threadbridge.crossing.estimate import CLIENT, DAYS, is_secret
from threadbridge.crossing.routes import Route
from threadbridge.loop.bridge import Bridge

# Nobody reads more, and these are nearly all of the work.
MOST_ROWS = 100
LONGEST_TEXT = 200
# The deviations above the mean below which 95 % of a normal distribution lie.
P95 = 1.645


def learned(bridge: Bridge) -> list[dict[str, Any]]:
    """The kinds of requests that have taken most time, the heaviest first, for JSON; costs in seconds.

    A kind is a route or, if a parameter tells its costs apart, one value of it. Empty if nothing is learned.
    """
    costs = bridge.shared.costs
    if costs is None:
        return []
    kinds = (
        (method, path, route, parameters, cell)
        for method, path, route in bridge.shared.routes.all()
        for parameters, cell in _kinds(costs, route.cost)
    )
    heaviest = heapq.nlargest(MOST_ROWS, kinds, key=lambda kind: kind[4].count * kind[4].seconds)
    return [
        {
            "method": method,
            # A path is bytes as latin-1, as PATH_INFO has them.
            "path": path.encode("latin-1", "replace").decode(errors="replace")[:LONGEST_TEXT],
            "parameters": ", ".join(parameters)[:LONGEST_TEXT],
            "count": cell.count,
            "median": cell.quantile(0.0),
            "p95": cell.quantile(P95),
            "mean": cell.seconds,
            "database": min(1.0, cell.database / cell.seconds) if cell.seconds else 0.0,
            "class": _class_of(bridge, route, cell),
        }
        for method, path, route, parameters, cell in heaviest
    ]


def merged(tables: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The tables of several processes as one.

    Processes share what they know of costs: of each kind, the one that has learned most tells all.
    """
    rows: dict[tuple[str, str, str], dict[str, Any]] = {}
    for table in tables:
        for row in table["rows"]:
            key = (row["method"], row["path"], row["parameters"])
            if key not in rows or row["count"] > rows[key]["count"]:
                rows[key] = row
    return heapq.nlargest(MOST_ROWS, rows.values(), key=lambda row: row["count"] * row["mean"])


def _kinds(costs: Costs, route: Cell) -> Iterator[tuple[tuple[str, ...], Cell]]:
    """Each kind of a route's requests that is told apart: the parameters that decide, and the costs."""
    found: list[tuple[tuple[str, ...], Cell]] = [((), route)]
    while found:
        parameters, cell = found.pop()
        # For each kind alone: workers that learn wait for it.
        with costs.lock:
            name = cell.decisive
            below = list(cell.parameters[name].cells.items()) if cell.parameters is not None and name else []
        if below:
            found += [((*parameters, shown(name, value)), each) for value, each in below]
        elif cell.count:
            yield parameters, cell


def shown(name: str, value: str) -> str:
    """A parameter for operators; see `threadbridge.crossing.estimate.parameters_of`."""
    if is_secret(name):
        value = value and "…"
    elif name.endswith("#") or name == DAYS:
        name = name.rstrip("#").strip("()")
        # Clients, too, may send parameters of these names.
        if value.isdecimal() and 1 < int(value) <= 64:
            value = f"{2 ** (int(value) - 1)} to {2 ** int(value) - 1}"
    elif name == CLIENT:
        name = "client"
    elif name.startswith("/"):
        name = f"number {name[1:]} of the path"
    return f"{name}={value}" if value else f"without {name}"


def _class_of(bridge: Bridge, route: Route, cell: Cell) -> str:
    """The class in which such a request would run now; the settings may give it another."""
    short_below = bridge.lane_choice.usual(route).short_below
    return "short" if max(cell.quantile(CAUTION), cell.seconds) < short_below else "long"
