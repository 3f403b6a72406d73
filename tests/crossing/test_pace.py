"""When a host counts as slow, and for how long."""

from __future__ import annotations

import random

import pytest

from threadbridge.crossing.cost_cells import scaled
from threadbridge.crossing.costs import Costs
from threadbridge.crossing.estimate import Estimate
from threadbridge.crossing.pace import FEWEST, USUAL, Pace, Usual
from threadbridge.crossing.routes import Routes


class Clock:
    """Adds requests of two routes to a pace, so many a second."""

    def __init__(self, rate: float) -> None:
        self.pace = Pace()
        self.now = 1000.0
        self.numbers: tuple[int, ...] = (0, 1)
        self._rate = rate
        self._random = random.Random(1)
        self._routes = [Usual(), Usual()]
        self._last = [0.0, 0.0]

    def run(self, seconds: float, factor: float = 1, spread: float = 0.5) -> float:
        """The share at the end."""
        for _ in range(int(seconds * self._rate)):
            self.now += 1 / self._rate
            number = self._random.choice(self.numbers)
            # One takes 10 ms, and the other 1 s.
            took = (0.01, 1.0)[number] * self._random.lognormvariate(0, spread) * factor
            self.pace.add(self._routes[number], scaled(took), self._last[number], self.now)
            self._last[number] = self.now
        return self.pace.share


@pytest.mark.parametrize("rate", [5, 100])
def test_a_host_that_becomes_slow_is_noticed_and_forgiven(rate: float) -> None:
    clock = Clock(rate)
    assert clock.run(120) == 1
    assert clock.run(FEWEST * 2.5 / rate + 4, factor=4) < 0.3
    assert clock.pace.slowdown == pytest.approx(4, rel=0.35)
    assert clock.run(FEWEST * 2.5 / rate + 4) == 1


def test_a_host_with_next_to_nothing_soon_shows_that_it_is_as_before() -> None:
    clock = Clock(50)
    clock.run(120)
    assert clock.run(10, factor=4) < 0.3
    clock._rate = 0.5
    assert clock.run(FEWEST * 2 / 0.5) == 1


def test_a_host_that_stays_slow_is_taken_as_it_is() -> None:
    clock = Clock(20)
    clock.run(300)
    assert clock.run(10, factor=4) < 0.3
    assert clock.run(3 * USUAL, factor=4) == 1


def test_an_earlier_trouble_is_forgotten() -> None:
    clock = Clock(50)
    clock.run(10)
    clock.run(20, factor=4)
    clock.run(10)
    assert clock.run(10, factor=4) < 0.3


def test_more_of_the_slow_requests_do_not_make_a_host_slow() -> None:
    clock = Clock(50)
    clock.run(60)
    clock.numbers = (1,)
    assert clock.run(20) == 1
    assert clock.pace.slowdown == pytest.approx(1, rel=0.3)


def test_widely_different_requests_are_usual() -> None:
    clock = Clock(30)
    assert min(clock.run(1, spread=1.0) for _ in range(600)) > 0.7


def test_one_hanging_request_is_not_a_slow_host() -> None:
    clock = Clock(10)
    clock.run(60)
    clock.run(0.1, factor=10_000)
    assert clock.pace.share == 1


def test_what_has_never_been_seen_is_not_slow() -> None:
    costs = Costs()
    routes = Routes(costs)
    for number in range(1000):
        estimate = Estimate(routes.find("GET", f"/{chr(97 + number % 20)}{number // 200}").cost, "/", "client")
        costs.learn(estimate, 0.01 * (number + 1))
    assert costs.pace.share == 1
