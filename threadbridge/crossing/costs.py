"""What requests cost: learned from those that have run, by route and by the parameters that make a difference."""

from __future__ import annotations

import math
import re
import threading
import time
from collections import OrderedDict

# Costs are seconds. They are compared by their natural logarithms: 20 ms differs from 2 ms as 20 s from 2 s.

# An average follows about so many of the latest requests; that of the seconds follows more, because of some kinds a few
# requests are most of the work.
MEMORY = 20.0
LONG_MEMORY = 500.0
# A cost is as expected if it differs from the average by less than this, or by less than three deviations.
NOTABLE = math.log(3)
# So many unexpected costs in a row, all higher or all lower, mean that the kind has changed; what was known is dropped.
CHANGES_AFTER = 3
# The variance assumed of a kind that has been observed once or twice.
USUAL_VARIANCE = 0.5
# How many deviations above the mean a cautious estimate is.
CAUTION = 1.5
# A parameter has told a cost if the average of its value was closer to it than the average of all, where one of the
# two was off by more than the first of these, by more than the second. It decides once it has saved so much error; what
# it adds elsewhere counts three times.
FAR_OFF = math.log(9)
TOLD = 0.5
ENOUGH = 8.0
LOSSES_COUNT = 3.0
# The sum of errors after which older ones count half.
FULL = 300.0
# Seconds: parameters are looked at where costs are not all below this. An unknown request is expected to cost so much.
CHEAP = 0.05
# Seconds: a kind of which only similar ones are known is trusted if most of them stay below this.
TRUSTED = 0.1
# The greatest logarithm of a cost: six hours.
LONGEST = 10.0
# Where costs are small and much the same, one request of so many teaches about parameters.
SAMPLED = 8
# How many parameters may decide together, one below the other.
DEPTH = 3
# The parameters of one kind that are looked at, and the values known of each: of the one that decides, of another, and
# of one that has so few values that a new one may be another matter.
MAX_PARAMETERS = 12
MAX_VALUES = 256
MAX_CANDIDATES = 32
FEW_VALUES = 5
# The values known of all routes together, which take 8 MB at most.
MAX_CELLS = 6000
# What is looked at of a query string or form: characters, pairs, and characters of a name or value.
MAX_TEXT = 2000
MAX_PAIRS = 32
MAX_VALUE = 24
# Characters of a client's name, which may be what `client_key` makes of a header.
MAX_CLIENT = 64

# The name of the parameter that is the client.
CLIENT = "(client)"
DAYS = "(days)"

# As text, to the power of two.
MAGNITUDES = [str(power) for power in range(65)]

_NUMBERS = re.compile(r"[0-9]+").findall
_DATE = re.compile(r"([0-9]{4})-([0-9]{2})-([0-9]{2})").match


def parameters_of(target: str, form: str, client: str) -> dict[str, str]:
    """Return what may tell the costs of a route's requests apart, by name; at most `MAX_TEXT` characters are read.

    The parameters of the query string and of an urlencoded form are there as they were sent, not decoded. A number is
    there once more, as ``NAME#``, with its magnitude to the power of two; ``(days)`` is the magnitude of the time
    between the first two dates. ``/1``, ``/2``, … are the numbers in the path, and ``(client)`` is the client.
    """
    found: dict[str, str] = {CLIENT: ""}
    path, _, query = target.partition("?")
    first_day = -1
    for text in (query, form):
        if not text:
            continue
        for pair in text[:MAX_TEXT].split("&", MAX_PAIRS)[:MAX_PAIRS]:
            name, _, value = pair.partition("=")
            if not value:
                # An empty field of a form is as good as a missing one.
                continue
            if len(pair) > MAX_VALUE:
                name, value = name[:MAX_VALUE], value[:MAX_VALUE]
            found[name] = value
            # Only these two look like numbers or dates.
            if not "0" <= value[0] <= "9":
                continue
            if len(value) >= 10 and value[4] == "-" and (date := _DATE(value)) is not None:
                day = int(date[1]) * 365 + int(date[2]) * 30 + int(date[3])
                if first_day < 0:
                    first_day = day
                elif DAYS not in found:
                    found[DAYS] = MAGNITUDES[abs(day - first_day).bit_length()]
            else:
                whole = value if value.isdecimal() else value.partition(".")[0]
                if whole.isdecimal():
                    found[name + "#"] = MAGNITUDES[min(int(whole).bit_length(), 64)]
    for number, digits in enumerate(_NUMBERS(path[:MAX_TEXT])[:MAX_PARAMETERS], 1):
        found[f"/{number}"] = digits[:MAX_VALUE]
    # Last: a request may have a parameter of this name.
    found[CLIENT] = client[:MAX_CLIENT]
    return found


def _last_value(text: str, name: str) -> str:
    """Return the last value of this field that is not empty, as `parameters_of` does."""
    text = "&" + text
    begin = f"&{name}="
    at = text.rfind(begin)
    while at >= 0:
        value, _, _ = text[at + len(begin) :].partition("&")
        if value:
            return value[:MAX_VALUE]
        at = text.rfind(begin, 0, at)
    return ""


class Estimate:
    """What a request is expected to cost, in seconds.

    `seconds` is what such a request usually takes, `average` their mean, of which rare long ones are a part, and
    `cautious` what most of them stay below. `is_known` is false if there is nothing to go by. `kind` names the
    parameters that decided. The rest belongs to the `Schedule` in which the request is.
    """

    seconds = 0.0
    average = 0.0
    cautious = 0.0
    is_known = True
    kind = ""
    # Of the schedule: the level and the class in which the request waits or runs, when it was queued, when it is due,
    # and whether it has run for longer than its class allows.
    level = 0
    cost_class = ""
    queued_at = 0.0
    due = 0.0
    outgrown = False

    def __init__(self, route: Cell | None, target: str, client: str, pinned: str = "") -> None:
        self.route = route
        self.target = target
        self.client = client
        # The class that the settings give it, or "".
        self.pinned = pinned
        # The urlencoded form in the request's body.
        self.form = ""
        self._parameters: dict[str, str] | None = None

    def add_form(self, form: str) -> None:
        """Add the fields of an urlencoded form."""
        self.form = form
        self._parameters = None

    def parameters(self) -> dict[str, str]:
        """See `parameters_of`."""
        if self._parameters is None:
            self._parameters = parameters_of(self.target, self.form, self.client)
        return self._parameters

    def value_of(self, name: str) -> str:
        """Return the value of one parameter, or ""; on the loop, where most requests need no other."""
        if self._parameters is None:
            if name == CLIENT:
                return self.client
            if len(name) < MAX_VALUE and name[0] not in "/(" and name[-1] != "#":
                _, _, query = self.target.partition("?")
                if query.count("&") < MAX_PAIRS and self.form.count("&") < MAX_PAIRS:
                    return _last_value(self.form[:MAX_TEXT], name) or _last_value(query[:MAX_TEXT], name)
        return self.parameters().get(name, "")


class Cell:
    """The costs of requests of one kind and, where they differ, by the values of each parameter."""

    def __init__(self) -> None:
        # How many of the latest it remembers, the mean of their logarithms, and the variance.
        self.n = 0.0
        self.mean = 0.0
        self.variance = 0.0
        # The same for the mean of the seconds, of which so many were in the database.
        self.remembered = 0.0
        self.seconds = 0.0
        self.database = 0.0
        # All since it is known.
        self.count = 0
        # Unexpected costs in a row: positive if they were higher, negative if lower.
        self.unexpected = 0
        self.parameters: dict[str, Parameter] | None = None
        # The name of the parameter that decides; "" if none does.
        self.decisive = ""
        # The errors of the mean where it was far off.
        self.missed = 0.0
        # What estimates are made of, kept for the loop.
        self.usual = CHEAP
        self.cautious = TRUSTED
        # Of a route's cell: when a request was last learned from, by `time.time`.
        self.last = 0.0
        # Whether its route is not known any more; then it learns no parameters, which nobody would forget again.
        self.is_forgotten = False

    def learn(self, x: float, database: float) -> None:
        """Take in a cost, given as its logarithm, and the seconds of it in the database."""
        self.count += 1
        d = x - self.mean
        limit = NOTABLE + 3 * math.sqrt(self.variance)
        if self.n < 4 or abs(d) < limit:
            self.unexpected = 0
        else:
            self.unexpected = max(self.unexpected, 0) + 1 if d > 0 else min(self.unexpected, 0) - 1
            if abs(self.unexpected) >= CHANGES_AFTER:
                self.n, self.mean, self.variance, self.unexpected = 1.0, x, USUAL_VARIANCE, 0
                self.remembered, self.seconds, self.database = 1.0, math.exp(x), database
                self.sum_up()
                return
            d = limit if d > 0 else -limit
        self.remembered = min(self.remembered + 1, LONG_MEMORY)
        self.seconds += (math.exp(x) - self.seconds) / self.remembered
        self.database += (database - self.database) / self.remembered
        self.n = min(self.n + 1, MEMORY)
        self.mean += d / self.n
        self.variance += (d * d * (1 - 1 / self.n) - self.variance) / self.n
        self.sum_up()

    def sum_up(self) -> None:
        """Compute what estimates are made of."""
        self.usual = math.exp(min(self.mean, LONGEST))
        self.cautious = max(self.quantile(CAUTION), self.seconds)

    def quantile(self, deviations: float) -> float:
        """Return the seconds below which a request stays, so many deviations above the mean; more if few are known."""
        n = max(self.n, 1.0)
        variance = (self.variance * self.n + 2 * USUAL_VARIANCE) / (self.n + 2) * (1 + 1 / n)
        return math.exp(min(self.mean + deviations * math.sqrt(variance), LONGEST))

    def take_over(self, other: Cell) -> None:
        """Know of costs what another one knows, but nothing of parameters."""
        self.n, self.mean, self.variance = other.n, other.mean, other.variance
        self.remembered, self.seconds, self.database = other.remembered, other.seconds, other.database
        self.count, self.unexpected, self.missed = other.count, other.unexpected, other.missed
        self.sum_up()

    def size(self) -> int:
        """Return how many cells there are below this one."""
        size = 0
        if self.parameters is not None:
            for parameter in self.parameters.values():
                for cell in parameter.cells.values():
                    size += 1 + cell.size()
        return size


class Parameter:
    """The costs by the value of one parameter, and how well the value has told them."""

    def __init__(self) -> None:
        # By value; "" stands for requests without the parameter. The next to be forgotten comes first.
        self.cells: OrderedDict[str, Cell] = OrderedDict()
        # The costs of requests whose value was new.
        self.new = Cell()
        # The errors by which its values were closer to costs than the average of all, and farther away.
        self.saved = 0.0
        self.lost = 0.0
        # How many requests in a row were without it.
        self.absent = 0

    def score(self) -> float:
        """Return how much better than the average of all its values tell costs."""
        return self.saved - LOSSES_COUNT * self.lost

    def may_tell(self, value: str) -> bool:
        """Return whether this is one of few values and has hardly been seen, so that it may be another matter."""
        if len(self.cells) >= FEW_VALUES:
            return False
        cell = self.cells.get(value)
        return cell is None or cell.n < 3


class Costs:
    """The costs of a bridge's requests.

    A lock guards all cells. Each operation takes a time that depends on the number of the request's parameters alone.
    """

    def __init__(self) -> None:
        # Of the first request of each route.
        self.first = Cell()
        # How many cells there are below the routes.
        self.cells = 0
        # How many costs have been learned.
        self.learned = 0
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
        kind = ""
        while (known := cell.parameters) is not None:
            if not cell.decisive:
                if not kind and cell.usual > CHEAP and _may_be_another(known, estimate.parameters()):
                    # The others are costly, but this one need not be like them.
                    is_new, cell = True, _NOTHING
                break
            value = estimate.value_of(cell.decisive)
            kind += f" {cell.decisive}={value}"
            decisive = known[cell.decisive]
            below = decisive.cells.get(value)
            if below is None or below.n < 1:
                is_new, cell = True, decisive.new
                break
            cell = below
        estimate.kind = kind.lstrip()
        estimate.is_known = not is_new or (cell.n >= 3 and (cell.usual >= CHEAP or cell.cautious <= TRUSTED))
        estimate.seconds = cell.usual if estimate.is_known else CHEAP
        estimate.average = max(cell.seconds, cell.usual) if estimate.is_known else CHEAP
        estimate.cautious = cell.cautious

    def learn(self, estimate: Estimate, seconds: float, database: float = 0.0) -> None:
        """Take in that this request has held its thread for so long, and the database for so much of it."""
        if estimate.route is not None:
            with self.lock:
                self.learned += 1
                estimate.route.last = time.time()
                self._learn(estimate, estimate.route, max(seconds, 1e-4), database)

    def _learn(self, estimate: Estimate, route: Cell, seconds: float, database: float) -> None:
        x = math.log(seconds)
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
                for below in parameter.cells.values():
                    self.cells -= 1 + below.size()
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
                        gain = min(3.0, max(-3.0, math.log(max(told.seconds, 1e-4) / max(average, 1e-4))))
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
        if len(parameter.cells) >= limit:
            self.cells -= 1 + parameter.cells.popitem(last=False)[1].size()
        if self.cells >= MAX_CELLS:
            return None
        cell = parameter.cells[value] = Cell()
        self.cells += 1
        # It is the next to go until it is seen again: values that clients make up drive out only one another.
        parameter.cells.move_to_end(value, last=False)
        return cell

    def forget(self, route: Cell) -> None:
        """Note that a route is not known any more."""
        with self.lock:
            self.cells -= route.size()
            route.parameters = None
            route.decisive = ""
            route.is_forgotten = True


_NOTHING = Cell()


def _may_be_another(known: dict[str, Parameter], parameters: dict[str, str]) -> bool:
    """Return whether a value of the request is new among few, so that it may cost something else."""
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
