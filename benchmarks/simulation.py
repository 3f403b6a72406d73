"""A simulation of the schedule in front of ten database connections, and of other rules in its place.

    python -m benchmarks.simulation                          # all workloads: the package's rule, and clients in turn
    python -m benchmarks.simulation measured mixed0.9 --rule learned --rule known --seeds 5
    python -m benchmarks.simulation mixed0.9 --rule learned,PATIENCE=30       # a constant changed

It runs the package's own `Schedule` and `Costs`; only time and the queries are simulated. `docs/scheduling.md` has what
it has shown.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from random import Random
from typing import NamedTuple

from benchmarks.simulated_requests import Request, Traffic
from benchmarks.simulated_rules import QUEUE_TIMEOUT, RULES, Rule, constants, parse
from benchmarks.simulated_workloads import WIDTH, WORKLOADS

# Seconds between two looks at what waits: `threadbridge.loop.watch.INTERVAL`.
LOOK = 0.25
# What counts as long in the figures, in seconds.
LONG = 1.0
# Seconds at the beginning that count as the cold start.
COLD = 10.0


class Simulation:
    """Requests that come, wait, run and end in simulated time."""

    def __init__(self, rule: Rule, traffic: Traffic) -> None:
        self._rule = rule
        self._traffic = traffic
        self.requests: list[Request] = []
        self._now = 0.0
        # What happens when; numbers keep the order of what happens at once.
        self._events: list[tuple[float, int, Callable[[Request], None], Request]] = []
        self._number = 0
        self._waiting: set[Request] = set()
        # Requests that compute, by the processor time at which they are done; each has had `_computed` so far.
        self._computing: list[tuple[float, int, Request]] = []
        self._computed = 0.0

    def run(self) -> None:
        """Run until the traffic's time is over; what has not ended then has no outcome."""
        for request in self._traffic.requests:
            self._plan(request.at, self._arrive, request)
        self._plan(0.0, self._look, Request(0.0, "", "", 0.0))
        while self._step():
            while (following := self._rule.take(self._now)) is not None:
                self._start(following)

    def _step(self) -> bool:
        """Let the next thing happen; False at the end."""
        processors, computing = self._traffic.processors, len(self._computing)
        rate = min(1.0, processors / computing) if computing else 1.0
        at = self._events[0][0]
        done = self._now + (self._computing[0][0] - self._computed) / rate if computing else math.inf
        if min(at, done) > self._traffic.seconds:
            return False
        self._computed += (min(at, done) - self._now) * rate
        self._now = min(at, done)
        if done < at:
            self._finish(heappop(self._computing)[2])
        else:
            _, _, action, request = heappop(self._events)
            action(request)
        return True

    def _plan(self, at: float, action: Callable[[Request], None], request: Request) -> None:
        self._number += 1
        heappush(self._events, (at, self._number, action, request))

    def _arrive(self, request: Request) -> None:
        self.requests.append(request)
        if request.patience < math.inf:
            self._plan(request.at + request.patience, self._leave, request)
        if self._rule.put(request, self._now):
            self._waiting.add(request)
            self._plan(request.at + QUEUE_TIMEOUT, self._refuse, request)
        else:
            self._end(request, "refused")

    def _start(self, request: Request) -> None:
        self._waiting.remove(request)
        request.started = self._now
        if request.computes:
            self._number += 1
            heappush(self._computing, (self._computed + request.seconds, self._number, request))
        else:
            self._plan(self._now + request.seconds, self._finish, request)

    def _finish(self, request: Request) -> None:
        if not request.outcome:
            self._end(request, "answered")
            self._rule.end(request, self._now)

    def _refuse(self, request: Request) -> None:
        if request in self._waiting:
            self._withdraw(request, "refused")

    def _leave(self, request: Request) -> None:
        if request in self._waiting:
            self._withdraw(request, "left")
        elif not request.outcome:
            # Its query is cancelled.
            self._end(request, "left")
            self._rule.end(request, self._now)

    def _withdraw(self, request: Request, outcome: str) -> None:
        self._waiting.remove(request)
        self._rule.remove(request)
        self._end(request, outcome)

    def _end(self, request: Request, outcome: str) -> None:
        request.end(self._now, outcome)
        following = self._traffic.following and self._traffic.following(request, self._now)
        if following is not None:
            self._plan(following.at, self._arrive, following)

    def _look(self, request: Request) -> None:
        for late in self._rule.too_late(self._now):
            self._withdraw(late, "refused")
        self._plan(self._now + LOOK, self._look, request)


class Figures(NamedTuple):
    """What became of a workload's requests that came after the cold start, except those of groups.

    Waits are seconds; slowdown is the time from arrival to answer as a multiple of the cost. `lost` is the share that
    was refused or whose clients left. `work` is the share of all threads' time, or of the processors', that went into
    requests that were not cut short.
    """

    short_median: float
    short_99: float
    short_worst: float
    short_lost: float
    cold_worst: float
    long_slowdown: float
    long_worst: float
    long_lost: float
    work: float

    def __str__(self) -> str:
        return (
            f"{1e3 * self.short_median:7.1f} {1e3 * self.short_99:9.1f} {1e3 * self.short_worst:9.0f}"
            f" {self.short_lost:7.1%} {1e3 * self.cold_worst:9.0f} | {self.long_slowdown:8.2f} {self.long_worst:7.1f}"
            f" {self.long_lost:7.1%} | {self.work:5.3f}"
        )


HEAD = (
    f"{'':16} {'':28} {'short/ms':>7} {'99 %':>8} {'worst':>9} {'lost':>7} {'cold':>9}"
    f" | {'long: x':>8} {'worst/s':>7} {'lost':>7} | {'work':>5}"
)


def quantile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else 0.0


def figures(requests: Sequence[Request], traffic: Traffic) -> Figures:
    # Those that came shortly before the end may have had no time to end.
    last = traffic.seconds - min(QUEUE_TIMEOUT, traffic.seconds / 4)
    known = [request for request in requests if not request.group and request.outcome and request.at < last]
    short = [request for request in known if request.seconds <= traffic.short and request.at >= COLD]
    long = [request for request in known if request.seconds >= LONG and request.at >= COLD]
    waits = [request.started - request.at for request in short if request.outcome == "answered"]
    answered = [request for request in long if request.outcome == "answered"]
    slowdowns = [(request.ended - request.at) / request.seconds for request in answered]
    cold = [
        (request.started if request.outcome == "answered" else request.ended) - request.at
        for request in known
        if request.seconds <= traffic.short and request.at < COLD
    ]
    work = sum(
        request.seconds if request.outcome else min(request.seconds, traffic.seconds - request.started)
        for request in requests
        if request.outcome == "answered" or (not request.outcome and request.started < traffic.seconds)
    )
    return Figures(
        short_median=quantile(waits, 0.5),
        short_99=quantile(waits, 0.99),
        short_worst=max(waits, default=0.0),
        short_lost=1 - len(waits) / max(1, len(short)),
        cold_worst=max(cold, default=0.0),
        long_slowdown=statistics.fmean(slowdowns) if slowdowns else math.nan,
        long_worst=max((request.started - request.at for request in answered), default=0.0),
        long_lost=1 - len(answered) / max(1, len(long)),
        work=work / traffic.seconds / (traffic.processors or WIDTH),
    )


def simulate(workload: str, rule: Rule, seed: int = 1, seconds: float = 600.0) -> tuple[list[Request], Traffic]:
    """Simulate a workload; return the requests that came, and the traffic that they are of."""
    traffic = WORKLOADS[workload](Random(seed), seconds)
    simulation = Simulation(rule, traffic)
    simulation.run()
    return simulation.requests, traffic


def measure(workload: str, rule: str, seeds: int = 3, seconds: float = 600.0) -> Figures:
    """Return the mean figures of several simulations; of worst waits, the longest."""
    make, changed = parse(rule)
    with constants(changed):
        all_figures = [figures(*simulate(workload, make(WIDTH), seed, seconds)) for seed in range(1, seeds + 1)]
    combined = [
        max(values) if field.endswith("worst") else statistics.fmean(values)
        for field, values in zip(Figures._fields, zip(*all_figures, strict=True), strict=True)
    ]
    return Figures(*combined)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.simulation", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("workloads", nargs="*", metavar="WORKLOAD", help=f"of {', '.join(WORKLOADS)}; default: all")
    parser.add_argument(
        "--rule",
        action="append",
        metavar="RULE[,CONSTANT=VALUE]...",
        help=f"of {', '.join(RULES)}; default: turns and learned. Its constants can be changed.",
    )
    parser.add_argument("--seeds", type=int, default=3, help="how many simulations to average; default: 3")
    parser.add_argument("--seconds", type=float, default=600.0, help="simulated time; default: 600")
    options = parser.parse_args()
    rules = options.rule or ["turns", "learned"]
    try:
        for rule in rules:
            parse(rule)
        for workload in options.workloads:
            if workload not in WORKLOADS:
                raise ValueError(f"there is no workload {workload!r}; give one of {', '.join(WORKLOADS)}")
    except ValueError as error:
        parser.error(str(error))
    print(HEAD)
    for workload in options.workloads or WORKLOADS:
        for rule in rules:
            print(f"{workload:16} {rule:28} {measure(workload, rule, options.seeds, options.seconds)}", flush=True)


if __name__ == "__main__":
    main()
