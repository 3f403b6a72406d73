"""What is known of the costs of requests of one kind, and of the parameters that tell them apart."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Final

from threadbridge.crossing.pace import Usual

# Costs are compared by natural logarithms: 20 s differs from 2 s as 0.2 s from 20 ms. Differences of less than so many
# seconds hardly count: threads wait as long for each other.
NOISE: Final = 0.002

# An average follows about so many of the latest requests. That of the seconds follows more: where a few requests are
# most of the work, they must not be forgotten from one to the next.
MEMORY: Final = 20.0
LONG_MEMORY: Final = 500.0
# A cost is as expected if it differs from the average by less than this, or by less than three deviations.
NOTABLE: Final = math.log(3)
# So many unexpected costs in a row, all higher or all lower, mean that the kind has changed; what was known is dropped.
CHANGES_AFTER: Final = 3
# The variance assumed of a kind that has been observed once or twice.
USUAL_VARIANCE: Final = 0.5
# How many deviations above the mean a cautious estimate is.
CAUTION: Final = 1.5
# Seconds: parameters are looked at where costs are not all below this. An unknown request is expected to cost so much.
CHEAP: Final = 0.05
# Seconds: a kind of which only similar ones are known is trusted if most of them stay below this.
TRUSTED: Final = 0.1
# The lowest cost, in seconds, and the greatest logarithm of one: six hours.
SHORTEST: Final = 1e-5
LONGEST: Final = 10.0
# A new value of a parameter that has fewer values than this may be another matter.
FEW_VALUES: Final = 5
# Errors that a parameter adds weigh so many times as much as those that it saves.
LOSSES_COUNT: Final = 3.0


def scaled(seconds: float) -> float:
    """Return the logarithm by which this cost is compared."""
    return math.log(seconds + NOISE)


def seconds_of(x: float) -> float:
    """Return the cost whose logarithm this is."""
    return max(math.exp(min(x, LONGEST)) - NOISE, SHORTEST)


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
        # Of a route's cell: when a request was last learned from, by `time.time`, and what they take in the long run.
        self.last = 0.0
        self.long_run: Usual | None = None
        # Whether its route is not known any more; then it learns no parameters, which nobody would forget again.
        self.is_forgotten = False

    def learn(self, x: float, database: float) -> None:
        """Take in a cost, given by `scaled`, and the seconds of it in the database."""
        self.count += 1
        d = x - self.mean
        limit = NOTABLE + 3 * math.sqrt(self.variance)
        if self.n < 4 or abs(d) < limit:
            self.unexpected = 0
        else:
            self.unexpected = max(self.unexpected, 0) + 1 if d > 0 else min(self.unexpected, 0) - 1
            if abs(self.unexpected) >= CHANGES_AFTER:
                self.n, self.mean, self.variance, self.unexpected = 1.0, x, USUAL_VARIANCE, 0
                self.remembered, self.seconds, self.database = 1.0, seconds_of(x), database
                self.sum_up()
                return
            d = limit if d > 0 else -limit
        self.remembered = min(self.remembered + 1, LONG_MEMORY)
        self.seconds += (seconds_of(x) - self.seconds) / self.remembered
        self.database += (database - self.database) / self.remembered
        self.n = min(self.n + 1, MEMORY)
        self.mean += d / self.n
        self.variance += (d * d * (1 - 1 / self.n) - self.variance) / self.n
        self.sum_up()

    def sum_up(self) -> None:
        """Compute what estimates are made of."""
        self.usual = seconds_of(self.mean)
        self.cautious = max(self.quantile(CAUTION), self.seconds)

    def quantile(self, deviations: float) -> float:
        """Return the seconds below which a request stays, so many deviations above the mean; more if few are known."""
        n = max(self.n, 1.0)
        variance = (self.variance * self.n + 2 * USUAL_VARIANCE) / (self.n + 2) * (1 + 1 / n)
        return seconds_of(self.mean + deviations * math.sqrt(variance))

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
        """Return whether this value may be another matter than others, which are costly.

        So it is if its own requests were cheap, or if it is one of few values and has hardly been seen.
        """
        cell = self.cells.get(value)
        if cell is not None and cell.n >= 3:
            return cell.usual < CHEAP
        return len(self.cells) < FEW_VALUES
