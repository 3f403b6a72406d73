"""What the operators' page keeps of the requests that have ended: bounded, and true to what it says."""

from __future__ import annotations

import random
import time

import pytest

from tests.support.records import record
from threadbridge.telemetry.history import KEPT_A_SECOND, SLOTS, History, quantiles


@pytest.fixture
def now() -> float:
    """A moment ago, neither at the edge of a second nor of a slot."""
    return time.time() // 10 * 10 - 4.5


def test_of_each_second_the_slowest_are_kept_and_all_are_counted(now: float) -> None:
    history = History()
    totals = [number / 1000 for number in range(500)]
    random.Random(1).shuffle(totals)
    history.read([record(id=f"{total}", total=total, started_at=now - total) for total in totals])
    history.read([record(id="failed", total=0.0001, ending="failed", started_at=now)])
    finished = history.finished()
    # Quick ones that failed are not lost among slow ones that were answered.
    assert sorted(bar["total"] for bar in finished if bar["ending"] == "done") == [
        0.494,
        0.495,
        0.496,
        0.497,
        0.498,
        0.499,
    ]
    assert len(finished) == KEPT_A_SECOND["done"] + 1
    [slot] = history.slots().values()
    assert slot["endings"] == {"done": 500, "failed": 1}


def test_what_never_ran_says_nothing_about_latencies(now: float) -> None:
    history = History()
    history.read([record(total=3.0, started_at=now - 3)])
    history.read([record(total=0.001, ending="shed", has_run=False, started_at=now) for _ in range(99)])
    [slot] = history.slots().values()
    assert slot["endings"] == {"done": 1, "shed": 99}
    [latency, *others] = quantiles(slot["bins"]).values()
    assert latency is not None and 2.8 < latency < 3.2 and others == [latency] * 2


def test_how_long_a_websocket_was_open_is_no_latency(now: float) -> None:
    history = History()
    history.read([record(total=3600.0, status=101, started_at=now - 3600), record(total=0.001, started_at=now)])
    [slot] = history.slots().values()
    assert slot["endings"] == {"done": 2}
    assert max(value or 0.0 for value in quantiles(slot["bins"]).values()) < 0.01


def test_what_is_old_is_forgotten(now: float) -> None:
    history = History()
    for age in range(3600, -1, -1):
        history.read([record(id=f"{age}", started_at=now - age)])
    assert max(float(bar["received"]) for bar in history.finished()) == now
    assert min(float(bar["received"]) for bar in history.finished()) > now - 61
    assert len(history._slowest) <= 62
    assert len(history._slots) <= SLOTS + 2
    assert SLOTS - 3 <= len(history.slots()) <= SLOTS
