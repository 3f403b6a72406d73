"""What requests cost: learned from those that have run, by route and by the parameters that make a difference."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Sequence
from typing import Final

from threadbridge.crossing.cost_cells import (
    CHEAP,
    FEW_VALUES,
    MEMORY,
    NOTABLE,
    SHORTEST,
    TRUSTED,
    Cell,
    Parameter,
    scaled,
)
from threadbridge.crossing.estimate import CLIENT, Estimate
from threadbridge.crossing.pace import Pace, Usual

# The average of a parameter's value has told a cost better, or worse, than the average of all if it was nearer to it,
# or farther off, by more than TOLD; this is looked at where one of the two was off by more than FAR_OFF. A parameter
# decides once it has saved ENOUGH error.
FAR_OFF: Final = math.log(9)
TOLD: Final = 0.5
ENOUGH: Final = 8.0
# The sum of errors after which older ones count half.
FULL: Final = 300.0
# Where costs are small and much the same, one request of so many teaches about parameters.
SAMPLED: Final = 64
# How many parameters may decide together, one below the other.
DEPTH: Final = 3
# The parameters of one kind that are looked at, and the values known of each: of the one that decides, and of another.
MAX_PARAMETERS: Final = 12
MAX_VALUES: Final = 256
MAX_CANDIDATES: Final = 32
# The values known of all routes together, which take 8 MB at most.
MAX_CELLS = 6000


class Costs:
    """The costs of a bridge's requests.

    A lock guards all cells. To estimate and to learn takes a time that depends on the number of the request's
    parameters alone, unless something else is forgotten to make room.
    """

    def __init__(self) -> None:
        # Of the first request of each route.
        self.first = Cell()
        # How many cells there are below the routes.
        self.cells = 0
        # How many costs have been learned.
        self.learned = 0
        # Whether a value of a known route found no room.
        self.lacks_room = False
        # Whether they take longer than usual.
        self.pace = Pace()
        self.lock = threading.Lock()

    def estimate(self, estimate: Estimate) -> None:
        """Write into the estimate what its request will cost."""
        if estimate.route is not None:
            with self.lock:
                self._estimate(estimate, estimate.route)

    def _estimate(self, estimate: Estimate, route: Cell) -> None:
        cell = route
        is_new = cell.n < 1
        if is_new:
            cell = self.first
        while (known := cell.parameters) is not None:
            if not cell.decisive:
                if cell is route and cell.usual > CHEAP and _may_be_another(known, estimate.parameters()):
                    # The others are costly, but this one need not be like them.
                    is_new, cell = True, _NOTHING
                break
            value = estimate.value_of(cell.decisive)
            decisive = known[cell.decisive]
            below = decisive.cells.get(value)
            if below is None or below.n < 1:
                is_new, cell = True, decisive.new
                break
            cell = below
        # Of one or two requests, or of others that are only similar, what is neither short nor long tells nothing.
        is_clear = cell.cautious <= TRUSTED or cell.usual >= CHEAP
        estimate.is_known = (cell.n >= 3 and is_clear) if is_new else (cell.n >= 3 or is_clear)
        estimate.seconds = cell.usual if estimate.is_known else CHEAP
        estimate.average = max(cell.seconds, cell.usual) if estimate.is_known else CHEAP
        estimate.cautious = cell.cautious

    def learn(self, estimate: Estimate, seconds: float, database: float = 0.0) -> None:
        """Take in that this request has held its thread for so long, and the database for so much of it."""
        route = estimate.route
        if route is not None:
            now = time.time()
            with self.lock:
                self._learn(estimate, route, max(seconds, SHORTEST), database)
                if route.long_run is None:
                    route.long_run = Usual()
                self.pace.add(route.long_run, scaled(seconds), route.last, now)
                route.last = now
                self.learned += 1

    def _learn(self, estimate: Estimate, route: Cell, seconds: float, database: float) -> None:
        x = scaled(seconds)
        cell = route
        if cell.n < 1:
            self.first.learn(x, database)
        if cell.is_forgotten:
            cell.learn(x, database)
            return
        parameters: dict[str, str] | None = None
        for _ in range(DEPTH):
            mean, average = (cell.mean, cell.seconds) if cell.n >= 1 else (x, seconds)
            if (
                cell.count >= MEMORY
                and cell.count % SAMPLED
                and cell.usual < CHEAP
                and cell.cautious < TRUSTED
                and not cell.decisive
                and abs(x - mean) < NOTABLE
            ):
                # Most routes: costs are small, and much the same.
                cell.learn(x, database)
                return
            if cell.parameters is None:
                cell.parameters = {}
            if parameters is None:
                parameters = estimate.parameters()
            self._add_parameters(cell, cell.parameters, parameters)
            cell.learn(x, database)
            decisive = cell.decisive
            below = self._learn_by_parameters(cell, cell.parameters, parameters, x, mean, average, database)
            if below is None:
                return
            # It has told what it can.
            parameters = {name: value for name, value in parameters.items() if name != decisive}
            cell = below
        cell.learn(x, database)

    def _add_parameters(self, cell: Cell, known: dict[str, Parameter], parameters: dict[str, str]) -> None:
        is_first = not known
        for name in parameters:
            if name in known:
                known[name].absent = 0
            elif len(known) < MAX_PARAMETERS or self._drop_parameter(cell, known):
                parameter = known[name] = Parameter()
                if not is_first and self.cells < MAX_CELLS:
                    # All requests so far were without it.
                    parameter.cells[""] = so_far = Cell()
                    so_far.take_over(cell)
                    so_far.missed = 0.0
                    self.cells += 1

    def _drop_parameter(self, cell: Cell, known: dict[str, Parameter]) -> bool:
        """Make room for another parameter; return whether one was out of use."""
        for name, parameter in known.items():
            if parameter.absent > MEMORY and name != cell.decisive:
                self._drop_values(parameter)
                del known[name]
                return True
        return False

    def _learn_by_parameters(
        self,
        cell: Cell,
        known: dict[str, Parameter],
        parameters: dict[str, str],
        x: float,
        mean: float,
        average: float,
        database: float,
    ) -> Cell | None:
        """Learn by each parameter; return the cell of the value that decides, which has yet to learn."""
        missed = abs(x - mean)
        following: Cell | None = None
        for name, parameter in known.items():
            value = parameters.get(name, "")
            parameter.absent += not value
            below = parameter.cells.get(value)
            if below is None:
                told, enough = parameter.new, 3.0
            else:
                told, enough = _deepest(below, parameters) if name == cell.decisive else below, 1.0
            if told.n >= enough:
                error = abs(x - told.mean)
                if missed > FAR_OFF or error > FAR_OFF:
                    gain = missed - error
                    if x - mean > FAR_OFF and abs(gain) < TOLD:
                        # Most of its requests are like all others, but a few may be long.
                        gain = min(3.0, max(-3.0, scaled(told.seconds) - scaled(average)))
                    if gain > TOLD:
                        parameter.saved += gain
                    elif gain < -TOLD:
                        parameter.lost -= gain
            if below is None:
                parameter.new.learn(x, database)
                below = self._add_value(parameter, value, MAX_VALUES if name == cell.decisive else MAX_CANDIDATES)
            else:
                parameter.cells.move_to_end(value)
            if name == cell.decisive:
                following = below
            elif below is not None:
                below.learn(x, database)
        if missed > FAR_OFF:
            _decide(cell, known, missed)
        return following

    def _add_value(self, parameter: Parameter, value: str, limit: int) -> Cell | None:
        is_full = self.cells >= MAX_CELLS
        if len(parameter.cells) >= limit or (is_full and len(parameter.cells) >= FEW_VALUES):
            self.cells -= 1 + parameter.cells.popitem(last=False)[1].size()
        elif is_full:
            self.lacks_room = True
            return None
        cell = parameter.cells[value] = Cell()
        self.cells += 1
        # It is the next to go until it is seen again: values that clients make up drive out only one another.
        parameter.cells.move_to_end(value, last=False)
        return cell

    def make_room(self, routes: Sequence[Cell]) -> None:
        """Forget what is known of parameters of the route with the most cells: first of those that do not decide.

        So clients that make up parameters drive out nothing but these.
        """
        with self.lock:
            self.lacks_room = False
            largest = max(routes, key=Cell.size)
            known, largest.parameters = largest.parameters or {}, None
            decisive = known.get(largest.decisive)
            if decisive is not None and len(known) > 1:
                largest.parameters = {largest.decisive: decisive}
            else:
                largest.decisive = ""
            for name, parameter in known.items():
                if name != largest.decisive:
                    self._drop_values(parameter)

    def _drop_values(self, parameter: Parameter) -> None:
        for cell in parameter.cells.values():
            self.cells -= 1 + cell.size()

    def forget(self, route: Cell) -> None:
        """Note that a route is not known any more."""
        with self.lock:
            self.cells -= route.size()
            route.parameters = None
            route.decisive = ""
            route.is_forgotten = True


_NOTHING: Final = Cell()


def _may_be_another(known: dict[str, Parameter], parameters: dict[str, str]) -> bool:
    """Return whether the request may cost something else than others of its route, by one of its values."""
    for name, parameter in known.items():
        if name != CLIENT and not name.endswith("#") and parameter.may_tell(parameters.get(name, "")):
            return True
    return False


def _deepest(cell: Cell, parameters: dict[str, str]) -> Cell:
    """Return the cell that would have told the cost of a request with these parameters."""
    while cell.parameters is not None and cell.decisive:
        below = cell.parameters[cell.decisive].cells.get(parameters.get(cell.decisive, ""))
        if below is None or below.n < 1:
            break
        cell = below
    return cell


def _decide(cell: Cell, known: dict[str, Parameter], missed: float) -> None:
    """Choose the parameter that decides, now that the mean of all was far off."""
    cell.missed += missed
    if cell.missed >= FULL:
        cell.missed /= 2
        for parameter in known.values():
            parameter.saved /= 2
            parameter.lost /= 2
    # What is known below the values of the present one would be lost: another must be much better.
    highest = ENOUGH + (2 * max(0.0, known[cell.decisive].score()) if cell.decisive else 0.0)
    for name, parameter in known.items():
        score = parameter.score()
        if score > highest:
            cell.decisive, highest = name, score
