"""The schedule and the costs that it learns, in front of simulated queries: what all clients can rely on."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence

import pytest

from benchmarks.simulated_requests import Request
from benchmarks.simulated_rules import ClientsInTurn, LearnedCosts
from benchmarks.simulated_workloads import WIDTH
from benchmarks.simulation import COLD, figures, quantile, simulate
from threadbridge.crossing import costs
from threadbridge.crossing.routes import MAX_ROUTES

# Simulated seconds: a few of real time for all tests together.
SECONDS = 90.0


def waits(requests: Sequence[Request], group: str = "", begin: float = COLD, end: float = SECONDS) -> list[float]:
    """Return how long the answered short ones have waited that came between these times."""
    return [
        request.started - request.at
        for request in requests
        if request.group == group
        and request.seconds <= 0.1
        and begin <= request.at < end
        and request.outcome == "answered"
    ]


def lost(requests: Sequence[Request]) -> int:
    """Return how many short ones, except those of groups, were refused."""
    return sum(request.outcome == "refused" and request.seconds <= 0.1 and not request.group for request in requests)


@pytest.mark.parametrize("workload", ["measured", "measured-path", "measured-period"])
def test_short_ones_do_not_wait_for_long_ones_that_hold_all_connections(workload: str) -> None:
    requests, traffic = simulate(workload, LearnedCosts(WIDTH), seconds=SECONDS)
    found = figures(requests, traffic)
    assert found.short_99 <= 0.05
    assert found.short_worst <= 0.3
    assert found.short_lost == 0
    assert found.work >= 0.88
    # Clients in turn wait for seconds, and most of them in vain: so much there is to gain.
    assert figures(*simulate(workload, ClientsInTurn(WIDTH), seconds=SECONDS)).short_99 > 5


def test_when_a_kind_becomes_slow_others_wait_for_at_most_three_of_its_runs() -> None:
    requests, _ = simulate("slower", LearnedCosts(WIDTH), seconds=SECONDS)
    changed = SECONDS / 3
    assert quantile(waits(requests, end=changed), 0.99) <= 0.05
    # Three times 3 s.
    assert max(waits(requests, begin=changed)) <= 9
    assert quantile(waits(requests, begin=changed + 9, end=2 * changed), 0.99) <= 0.05
    assert lost(requests) == 0
    # It is short again, and found to be.
    again = waits(requests, "stock", begin=2 * changed + 9)
    assert len(again) > 10
    assert statistics.median(again) <= 0.05


@pytest.mark.parametrize("workload", ["looks-short", "alternating", "new-value", "new-name", "new-path"])
def test_a_client_whose_long_requests_look_harmless_keeps_others_neither_waiting_nor_out(workload: str) -> None:
    requests, traffic = simulate(workload, LearnedCosts(WIDTH), seconds=SECONDS)
    found = figures(requests, traffic)
    # When a kind becomes long, one of it may take the kept thread, until another thread becomes free.
    assert quantile(waits(requests), 0.95) <= 0.05
    assert found.short_99 <= 2
    assert found.short_lost == 0
    # Nor does it take the turns of others' long ones.
    assert found.long_lost <= 0.05
    assert figures(*simulate(workload, ClientsInTurn(WIDTH), seconds=SECONDS)).short_median > 0.2


def test_values_and_paths_that_clients_make_up_take_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs, "MAX_CELLS", 300)
    for workload in ("new-value", "new-name", "new-path"):
        rule = LearnedCosts(WIDTH)
        simulate(workload, rule, seconds=SECONDS)
        assert 0 < rule.costs.cells <= 300
        assert len(rule.routes) <= MAX_ROUTES


@pytest.mark.parametrize("workload", ["impatient2.0", "computing1.5", "greedy"])
def test_each_request_ends_once(workload: str) -> None:
    rule = LearnedCosts(WIDTH)
    requests, _ = simulate(workload, rule, seconds=SECONDS)
    # `Request.end` fails if it ends twice.
    outcomes = Counter(request.outcome for request in requests)
    assert outcomes["answered"] > 100
    assert outcomes[""] == len(rule.schedule) + rule.schedule.running


def test_long_ones_take_little_longer_than_with_clients_in_turn() -> None:
    learned, in_turn = (
        statistics.fmean(
            figures(*simulate("reports0.9", make(WIDTH), seed, 2 * SECONDS)).long_slowdown for seed in range(1, 5)
        )
        for make in (LearnedCosts, ClientsInTurn)
    )
    assert learned <= 1.25 * in_turn
