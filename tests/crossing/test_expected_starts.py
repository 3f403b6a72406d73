"""When waiting requests are expected to start: in the order of their turns, after the work ahead of them."""

from __future__ import annotations

import random

import pytest

from threadbridge.crossing.cost_cells import Cell
from threadbridge.crossing.costs import Costs
from threadbridge.crossing.estimate import Estimate
from threadbridge.crossing.fair_queue import FairQueue
from threadbridge.crossing.recent_use import UNKNOWN
from threadbridge.crossing.routes import Routes
from threadbridge.crossing.schedule import Schedule


class Work:
    """A job of a client that is expected to take so long."""

    def __init__(self, client: str, seconds: float) -> None:
        self.client = client
        self.estimate = Estimate(Cell(), "/", client)
        self.estimate.seconds = self.estimate.average = self.estimate.cautious = seconds

    def claim(self) -> bool:
        return True

    def run(self) -> None:
        pass


def waits(schedule: Schedule, client: str, seconds: float) -> Work:
    work = Work(client, seconds)
    schedule.file(work)
    schedule.put(work, 0.0)
    return work


def runs(schedule: Schedule, client: str, seconds: float, now: float = 0.0) -> Work:
    work = Work(client, seconds)
    schedule.file(work)
    schedule.start(work, now)
    return work


def test_all_items_in_the_order_of_their_turns() -> None:
    generator = random.Random(5)
    for _ in range(200):
        queue: FairQueue[tuple[str, int]] = FairQueue()
        for number in range(generator.randrange(30)):
            client = generator.choice("abcde")
            queue.put(client, (client, number))
            if generator.random() < 0.2:
                queue.take()
        expected = queue.in_turn()
        assert [queue.take() for _ in range(len(queue))] == expected


def test_one_starts_after_the_shorter_ones_and_those_before_it() -> None:
    schedule = Schedule(4, Costs())
    for _ in range(4):
        runs(schedule, "x", 0.02)
    long = [waits(schedule, "a", 2.0), waits(schedule, "a", 2.0)]
    short = [waits(schedule, "b", 0.02), waits(schedule, "c", 0.02), waits(schedule, "b", 0.02)]
    starts = schedule.expected_starts(0.005)
    # Four threads for short ones; a thread is free in 15 ms.
    assert [starts[each] for each in short] == pytest.approx([0.015 + turn * 0.02 / 4 for turn in range(3)])
    # Three for long ones, of which none runs.
    assert [starts[each] for each in long] == pytest.approx([0.02, 0.02 + 2 / 3])
    assert len(starts) == 5


def test_what_runs_for_longer_than_expected_goes_on_for_as_long() -> None:
    schedule = Schedule(4, Costs())
    schedule.expect_short(0.0)
    for _ in range(3):
        runs(schedule, "x", 2.0)
    waiting = waits(schedule, "a", 2.0)
    # One thread is kept for short ones.
    assert schedule.expected_starts(0.5)[waiting] == pytest.approx(1.5)
    assert schedule.expected_starts(3.0)[waiting] == pytest.approx(3.0)
    waits(schedule, "b", 0.02)
    assert min(schedule.expected_starts(0.5).values()) == 0


def test_what_is_short_at_present() -> None:
    assert Schedule(2, None).short_below == 0
    schedule = Schedule(2, Costs())
    bound = schedule.short_below
    assert bound == 0.1
    for seconds, expected in ((bound * 0.99, "short"), (bound * 1.01, "long")):
        work = Work("a", seconds)
        schedule.file(work)
        assert work.estimate.cost_class == expected
    unknown = Work("a", 0.01)
    unknown.estimate.is_known = False
    schedule.file(unknown)
    assert (unknown.estimate.cost_class, unknown.estimate.level) == ("unknown", UNKNOWN)


def test_a_job_that_nobody_has_judged_is_judged_at_its_end() -> None:
    schedule = Schedule(2, Costs())
    quick, slow = runs(schedule, "a", 0.01), runs(schedule, "a", 0.01)
    schedule.end(quick, 0.02)
    assert (schedule.outgrown, quick.estimate.outgrown) == (0, False)
    schedule.end(slow, 5.0)
    assert (schedule.outgrown, slow.estimate.outgrown) == (1, True)


def test_routes_can_be_walked() -> None:
    routes = Routes(Costs())
    found = routes.find("GET", "/orders/17"), routes.find("POST", "/orders")
    assert {(method, path, id(route)) for method, path, route in routes.all()} == {
        ("GET", "/orders/0", id(found[0])),
        ("POST", "/orders", id(found[1])),
    }
