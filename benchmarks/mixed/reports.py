"""The sample application's reports in a mix: most are short, a few are long and most of the work.

Requests arrive at random moments, however many wait; each server gets the same ones at the same moments, alone.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import NamedTuple

from benchmarks import THREADS
from benchmarks.mixed.figures import Latencies, latencies, overlap
from benchmarks.traffic import NO_ANSWER, Answer, Traffic

SHORT, MEDIUM, LONG = "short", "medium", "long"
CLIENTS = 40
LOADS = (0.5, 0.9, 1.2, 2.0)
SEED = 20_251_129
# Seconds in which ten clients ask a server that has just been started, before it counts.
WARM_UP = 4.0
# Seconds for which the last requests are awaited; longer than any server here makes a request wait that it refuses.
PATIENCE = 45.0
# Of short reports; what they cost on an idle server is measured with one request more than there are regions.
REGIONS = ("North", "South", "West")


class Report(NamedTuple):
    """A report over so many days, 0 for one that has no period; or a wait in the database for so many seconds.

    :param weight: how often it is asked for, compared with others of its class.
    """

    cost_class: str
    name: str
    weight: int
    days: int = 0
    seconds: float = 0.0

    def path(self, numbers: random.Random) -> str:
        """The URL of such a report: any customer, and any period of that length in the data."""
        if self.seconds:
            return f"/query/?report={self.name}&seconds={self.seconds:g}&format=json"
        if not self.days:
            return f"/query/?report={self.name}&customer={numbers.randint(1, 20_000)}&format=json"
        first = date(2023, 1, 1) + timedelta(numbers.randint(0, 3 * 365 - self.days))
        period = f"from={first}&to={first + timedelta(self.days - 1)}"
        # Long ones are of all regions.
        region = "" if self.cost_class == LONG else numbers.choice(REGIONS)
        return f"/query/?report={self.name}&{period}&region={region}&format=json"


# Measured one at a time on the machine of the published results, they take 2 to 20 ms and 20 to 100 ms.
SHORT_REPORTS = (
    Report(SHORT, "orders", 40),
    Report(SHORT, "revenue", 12, days=1),
    Report(SHORT, "revenue", 6, days=3),
    Report(SHORT, "products", 10, days=1),
    Report(SHORT, "ranking", 8, days=3),
    Report(SHORT, "pairs", 5, days=1),
    Report(SHORT, "journal", 4, days=1),
)
MEDIUM_REPORTS = (
    Report(MEDIUM, "revenue", 4, days=21),
    Report(MEDIUM, "products", 3, days=21),
    Report(MEDIUM, "ranking", 2, days=31),
    Report(MEDIUM, "pairs", 1, days=21),
)
# Of all requests.
PARTS = {SHORT: 0.85, MEDIUM: 0.10, LONG: 0.05}


class Mix(NamedTuple):
    title: str
    long: Sequence[Report]

    @property
    def reports(self) -> list[Report]:
        return [*SHORT_REPORTS, *MEDIUM_REPORTS, *self.long]

    @property
    def weights(self) -> list[float]:
        """How likely each of the reports is."""
        totals = {part: sum(each.weight for each in self.reports if each.cost_class == part) for part in PARTS}
        return [PARTS[each.cost_class] * each.weight / totals[each.cost_class] for each in self.reports]

    def choose(self, numbers: random.Random) -> Iterator[Report]:
        """Random reports without end; of each 20, one is long and two are medium, so that short runs differ little."""
        while True:
            classes = [part for part, portion in PARTS.items() for _ in range(round(20 * portion))]
            numbers.shuffle(classes)
            for part in classes:
                reports = [each for each in self.reports if each.cost_class == part]
                yield numbers.choices(reports, [each.weight for each in reports])[0]

    def mean_cost(self, costs: Mapping[Report, float]) -> float:
        pairs = zip(self.reports, self.weights, strict=True)
        return sum(weight * costs[report] for report, weight in pairs)


MIXES = {
    "waiting": Mix(
        "long reports wait in the database",
        [Report(LONG, "wait", 1, seconds=seconds) for seconds in (2.0, 3.0, 4.0, 5.0, 6.0)],
    ),
    "computing": Mix(
        "long reports compute in the database",
        [
            Report(LONG, "revenue", 2, days=365),
            Report(LONG, "products", 2, days=730),
            Report(LONG, "ranking", 1, days=1000),
            Report(LONG, "pairs", 1, days=365),
        ],
    ),
}


@dataclass
class Served:
    """What a server did under a load.

    :param slowdown: how many times their cost long reports took, in the middle.
    :param refused: how many requests were refused, by class; ``unanswered``: those that had no answer at the end.
    :param work: the reports done, as a part of what the ten connections can do.
    """

    short: Latencies
    medium: Latencies
    long: Latencies
    slowdown: float
    refused: dict[str, int]
    unanswered: dict[str, int]
    work: float


Answers = list[tuple[Report, Answer]]


def measure_costs(port: int, reports: Sequence[Report]) -> dict[Report, float]:
    """The seconds that each report takes if the server has nothing else to do."""

    async def run() -> dict[Report, float]:
        traffic = Traffic(port)
        numbers = random.Random(SEED)
        found: dict[Report, float] = {}
        for report in reports:
            if report.seconds:
                found[report] = report.seconds
                continue
            answers = [await traffic.ask(report.path(numbers)) for _ in range(len(REGIONS) + 1)]
            if any(answer.status != 200 for answer in answers):
                raise RuntimeError(f"{report} was answered with {answers}")
            # The first may have to read from the disk.
            found[report] = statistics.median(answer.seconds for answer in answers[1:])
        traffic.leave()
        return found

    return asyncio.run(run())


async def keep_busy(port: int, mix: Mix, seconds: float, seed: int) -> Answers:
    """For so long, let as many clients as there are connections ask, each again when it is answered."""
    traffic = Traffic(port)
    numbers = random.Random(seed)
    chosen = mix.choose(numbers)
    answers: Answers = []
    until = time.monotonic() + seconds

    async def client(number: int) -> None:
        while time.monotonic() < until:
            report = next(chosen)
            answers.append((report, await traffic.ask(report.path(numbers), number)))

    await asyncio.gather(*(client(number) for number in range(2, 2 + THREADS)))
    traffic.leave()
    return answers


def measure_capacity(port: int, mix: Mix, costs: Mapping[Report, float], seconds: float) -> float:
    """How many requests of the mix a second ten connections can do that are never idle."""
    asyncio.run(keep_busy(port, mix, WARM_UP, SEED))
    began = time.monotonic()
    answers = asyncio.run(keep_busy(port, mix, seconds, SEED + 1))
    # Not the number of requests: a few long ones more or less are much of the work.
    done = sum(
        costs[report] * overlap(answer.sent, answer.answered, began, began + seconds) / max(answer.seconds, 1e-6)
        for report, answer in answers
        if answer.status == 200
    )
    return done / seconds / mix.mean_cost(costs)


def arrivals(mix: Mix, rate: float, seconds: float) -> Iterator[tuple[float, Report, str, int]]:
    """When which report is asked for, its URL, and the client; the same every time."""
    numbers = random.Random(SEED + 2)
    chosen = mix.choose(numbers)
    moment = 0.0
    while (moment := moment + numbers.expovariate(rate)) < seconds:
        report = next(chosen)
        yield moment, report, report.path(numbers), numbers.randint(2, 1 + CLIENTS)


async def send(port: int, mix: Mix, rate: float, seconds: float) -> Answers:
    traffic = Traffic(port)
    answers: Answers = []
    began = time.monotonic()
    give_up = began + seconds + PATIENCE

    async def ask(report: Report, path: str, client: int) -> None:
        answers.append((report, await traffic.ask(path, client, give_up)))

    tasks = []
    for moment, report, path, client in arrivals(mix, rate, seconds):
        await asyncio.sleep(max(0.0, began + moment - time.monotonic()))
        tasks.append(asyncio.create_task(ask(report, path, client)))
    await asyncio.gather(*tasks)
    traffic.leave()
    return answers


def measure_load(
    port: int, mix: Mix, costs: Mapping[Report, float], capacity: float, load: float, seconds: float
) -> Served:
    """Send so many times as many requests as the capacity to a server that has just been started, after a warm-up."""
    asyncio.run(keep_busy(port, mix, WARM_UP, SEED + 3))
    began = time.monotonic()
    answers = asyncio.run(send(port, mix, load * capacity, seconds))
    return served(answers, costs, began, seconds, capacity * mix.mean_cost(costs))


def served(answers: Answers, costs: Mapping[Report, float], began: float, seconds: float, most: float) -> Served:
    """:param most: the cost of what ten connections can do in a second."""

    def of(cost_class: str) -> list[Answer]:
        return [answer for report, answer in answers if report.cost_class == cost_class]

    good = [(report, answer) for report, answer in answers if answer.status == 200]
    # Each took its cost before the answer, as far as the machine lets us know.
    done = sum(
        overlap(answer.answered - costs[report], answer.answered, began, began + seconds) for report, answer in good
    )
    slowdowns = [answer.seconds / costs[report] for report, answer in good if report.cost_class == LONG]
    return Served(
        short=latencies(of(SHORT)),
        medium=latencies(of(MEDIUM)),
        long=latencies(of(LONG)),
        slowdown=statistics.median(slowdowns) if slowdowns else 0.0,
        refused={part: sum(answer.status not in (200, NO_ANSWER) for answer in of(part)) for part in PARTS},
        unanswered={part: sum(answer.status == NO_ANSWER for answer in of(part)) for part in PARTS},
        work=done / (seconds * most),
    )
