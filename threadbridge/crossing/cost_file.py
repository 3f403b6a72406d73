"""The text in which processes pass on what they have learned of costs, and how one adds another's knowledge to its own.

JSON Lines. The first line has the format's version, the number of lines that follow, and the costs of first requests.
Each route has a line, the last used first, then one for each parameter that is known of its requests, or of those below
a value of another parameter. A cell is an array; see `_encode`.

A cell's count says how much has been learned there. Processes that add each other's knowledge every half a minute have
all begun with the same, so the one that counts more has learned more since, and its cell replaces the other's. Values
and routes that only one of them knows are added.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from threadbridge.crossing.cost_cells import CHANGES_AFTER, FEW_VALUES, LONG_MEMORY, MEMORY, Cell, Parameter
from threadbridge.crossing.costs import DEPTH, MAX_CANDIDATES, MAX_CELLS, MAX_PARAMETERS, MAX_VALUES, Costs
from threadbridge.crossing.estimate import CLIENT, DAYS, MAX_VALUE, is_secret
from threadbridge.crossing.routes import MAX_SHAPE, Routes

VERSION = 1
# Bytes. What has been used least recently is left out beyond this.
MAX_SIZE = 1_000_000
# Seconds after which a route that nobody asks for is left out.
MAX_AGE = 60 * 86400.0
# Characters.
MAX_NAME = 64
# So many requests below a value make it worth keeping what is known of their other parameters, of which none decides.
WORTH_KEEPING = 8
# Stands, with a number, for a value that is not written. How many there are is worth knowing.
_UNNAMED = "?"

# What texts raise that are JSON, but have another structure.
_DAMAGE = (KeyError, TypeError, AttributeError, RecursionError)
_LARGEST = 1e7
# The bounds of a cell's numbers, in the order of `_encode`. Its counts are integers.
_LEAST = (0.0, -10.0, 0.0, 0.0, 0.0, 0.0, 0, -CHANGES_AFTER)
_MOST = (MEMORY, 17.0, 1000.0, LONG_MEMORY, _LARGEST, _LARGEST, 2**53, CHANGES_AFTER)


class KnownRoute(NamedTuple):
    """A line about a route."""

    method: str
    path: str
    cost: Cell


class KnownParameter(NamedTuple):
    """A line about a parameter of the last route, below the values of others: their names and values in turn."""

    below: tuple[str, ...]
    name: str
    parameter: Parameter


class Knowledge(NamedTuple):
    """What has been read from a file."""

    first: Cell
    lines: Iterable[KnownRoute | KnownParameter]


def encode(costs: Costs, routes: Routes) -> bytes:
    """Return the text. Any thread; the locks are held for moments only."""
    # Not `json.dumps` for all: its C code would keep the interpreter's lock for as long as it takes.
    oldest = time.time() - MAX_AGE
    known = sorted(routes.all(), key=lambda known: known[2].cost.last, reverse=True)
    lines: list[str] = []
    size = 0
    for method, path, route in known:
        cost = route.cost
        if cost.last <= oldest:
            break
        if not cost.count:
            # The first is being learned from.
            continue
        for line in _lines_of(method, path, cost, costs):
            size += len(line)
            if size > MAX_SIZE:
                break
            lines.append(line)
    header = f'{{"version":{VERSION},"lines":{len(lines)},"first":{_encode(costs.first)}}}\n'
    return (header + "".join(lines)).encode()


def _lines_of(method: str, path: str, route: Cell, costs: Costs) -> Iterator[str]:
    yield f'{{"route":{json.dumps([method, path])},"last":{route.last:.0f},"cost":{_encode(route)}}}\n'
    cells: list[tuple[tuple[str, ...], Cell]] = [((), route)]
    while cells:
        below, cell = cells.pop()
        decisive = cell.decisive
        with costs.lock:
            parameters = [(name, each, list(each.cells.items())) for name, each in (cell.parameters or {}).items()]
        # What decides first: the rest may have to be left out.
        parameters.sort(key=lambda parameter: parameter[0] != decisive)
        for name, parameter, values in parameters:
            is_private = _is_private(method, name, name == decisive)
            texts = []
            for number, (value, each) in enumerate(values):
                if each.count < 2 and name != decisive and len(values) >= FEW_VALUES:
                    # Not likely to be seen again.
                    continue
                if value and is_private:
                    value = f"{_UNNAMED}{number}"
                elif each.decisive or (each.parameters and each.count >= WORTH_KEEPING):
                    cells.append(((*below, name, value), each))
                texts.append(f"{json.dumps(value)}:{_encode(each)}")
            yield (
                f'{{"below":{json.dumps(below)},"parameter":{json.dumps(name)},'
                f'"score":[{parameter.saved:.5g},{parameter.lost:.5g}],"new":{_encode(parameter.new)},'
                f'"values":{{{",".join(texts)}}}}}\n'
            )


def _is_private(method: str, name: str, is_decisive: bool) -> bool:
    """Return whether the parameter's values do not belong in a file: secrets, and what is sent in forms."""
    if is_secret(name):
        return True
    if name in (CLIENT, DAYS) or name.endswith("#") or name.startswith("/"):
        return False
    return method not in ("GET", "HEAD") and not is_decisive


def _encode(cell: Cell) -> str:
    text = (
        f"{cell.n:g},{cell.mean:.4f},{cell.variance:.4f},{cell.remembered:g},{cell.seconds:.5g},{cell.database:.5g},"
        f"{cell.count},{cell.unexpected}"
    )
    if cell.decisive or cell.missed:
        text += f",{cell.missed:.5g},{json.dumps(cell.decisive)}"
    return f"[{text}]"


def decode(text: bytes) -> Knowledge:
    """Read a text; its lines are read one by one. Both raise ``ValueError`` for what `encode` would not write."""
    try:
        # Not `splitlines`, for which more characters end a line.
        first, *rest = text.decode().rstrip("\n").split("\n")
        header = json.loads(first)
        version = header["version"]
        if version != VERSION:
            raise ValueError(f"its version is {version!r:.20}, not {VERSION}")
        if header["lines"] != len(rest):
            raise ValueError(f"it has {len(rest)} lines after the first, not {header['lines']!r:.20}")
        return Knowledge(_decode(header["first"]), map(_line, rest))
    except _DAMAGE as error:
        raise ValueError(f"it is damaged: {error!r:.100}") from None


def _line(text: str) -> KnownRoute | KnownParameter:
    try:
        return _known(json.loads(text))
    except _DAMAGE as error:
        raise ValueError(f"it is damaged: {error!r:.100}") from None


def _known(line: dict[str, Any]) -> KnownRoute | KnownParameter:
    if "route" in line:
        method, path = line["route"]
        cost = _decode(line["cost"])
        cost.last = min(_number(line["last"], 0.0, 1e11), time.time())
        return KnownRoute(_text(method, MAX_SHAPE), _text(path, MAX_SHAPE), cost)
    below = tuple(_text(part) for part in line["below"])
    if len(below) > 2 * (DEPTH - 1) or len(below) % 2:
        raise ValueError("it is damaged: a path is too long")
    parameter = Parameter()
    parameter.saved, parameter.lost = (_number(score, 0.0, _LARGEST) for score in line["score"])
    parameter.new = _decode(line["new"])
    for value, numbers in line["values"].items():
        parameter.cells[_text(value)] = _decode(numbers)
    name = _text(line["parameter"], MAX_VALUE + 1)
    if not name:
        raise ValueError("it is damaged: a parameter has no name")
    return KnownParameter(below, name, parameter)


def _decode(values: list[Any]) -> Cell:
    cell = Cell()
    cell.n, cell.mean, cell.variance, cell.remembered, cell.seconds, cell.database, cell.count, cell.unexpected = map(
        _number, values[:8], _LEAST, _MOST
    )
    if len(values) > 8:
        missed, decisive = values[8:]
        cell.missed = _number(missed, 0.0, _LARGEST)
        cell.decisive = _text(decisive)
    cell.sum_up()
    return cell


def _number(value: Any, least: float, most: float) -> Any:
    """Return the value if it is a number between these two, and an integer if they are; raise ``ValueError`` if not."""
    # No NaN is between two numbers.
    if type(value) in (int, float) and least <= value <= most and (type(value) is int or type(least) is float):
        return value
    raise ValueError(f"it is damaged: {value!r:.40} is not a number from {least} to {most}")


def _text(value: object, longest: int = MAX_NAME) -> str:
    if isinstance(value, str) and len(value) <= longest:
        return value
    raise ValueError(f"it is damaged: {value!r:.40} is not a text of at most {longest} characters")


def merge(knowledge: Knowledge, costs: Costs, routes: Routes) -> None:
    """Add what another process has learned. Any thread; a lock is held for a line at a time."""
    with costs.lock:
        _take_over(costs.first, knowledge.first)
    route: Cell | None = None
    # By where a cell is below the route: what decides there, according to the other process.
    decisions: dict[tuple[str, ...], str] = {}
    for line in knowledge.lines:
        if isinstance(line, KnownRoute):
            route = routes.add(line.method, line.path)
            decisions = {}
            if route is not None:
                with costs.lock:
                    if route.is_forgotten:
                        route = None
                        continue
                    route.last = max(route.last, line.cost.last)
                    _learn_from(route, line.cost, (), decisions)
        elif route is not None:
            with costs.lock:
                _merge_parameter(route, line, costs, decisions)


def _take_over(cell: Cell, theirs: Cell) -> bool:
    """Replace what a cell knows of costs by what another one knows, if that is more; return whether it is."""
    if theirs.count <= cell.count:
        return False
    cell.take_over(theirs)
    return True


def _learn_from(cell: Cell, theirs: Cell, place: tuple[str, ...], decisions: dict[tuple[str, ...], str]) -> None:
    knows_more = _take_over(cell, theirs)
    if theirs.decisive and (knows_more or not cell.decisive):
        # Once the parameter is there.
        decisions[place] = theirs.decisive


def _merge_parameter(route: Cell, line: KnownParameter, costs: Costs, decisions: dict[tuple[str, ...], str]) -> None:
    cell = _find(route, line.below)
    if cell is None or route.is_forgotten:
        return
    if cell.parameters is None:
        cell.parameters = {}
    parameter = cell.parameters.get(line.name)
    if parameter is None:
        if len(cell.parameters) >= MAX_PARAMETERS:
            return
        parameter = cell.parameters[line.name] = Parameter()
    if decisions.get(line.below) == line.name:
        cell.decisive = line.name
    theirs = line.parameter
    if theirs.saved + theirs.lost > parameter.saved + parameter.lost:
        parameter.saved, parameter.lost = theirs.saved, theirs.lost
    _take_over(parameter.new, theirs.new)
    knows_values = bool(parameter.cells)
    limit = MAX_VALUES if line.name == cell.decisive else MAX_CANDIDATES
    for value in reversed(theirs.cells):
        below = parameter.cells.get(value)
        if below is None:
            has_room = len(parameter.cells) < limit and costs.cells < MAX_CELLS
            if not has_room or (knows_values and value.startswith(_UNNAMED)):
                continue
            below = parameter.cells[value] = Cell()
            # The next to be forgotten, as in their order.
            parameter.cells.move_to_end(value, last=False)
            costs.cells += 1
        _learn_from(below, theirs.cells[value], (*line.below, line.name, value), decisions)


def _find(cell: Cell, place: tuple[str, ...]) -> Cell | None:
    """Return the cell below the values of these parameters, if it is known."""
    for name, value in zip(place[::2], place[1::2], strict=True):
        parameter = cell.parameters.get(name) if cell.parameters is not None else None
        below = parameter.cells.get(value) if parameter is not None else None
        if below is None:
            return None
        cell = below
    return cell
