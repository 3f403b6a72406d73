"""What the operators' page shows of several processes: one history, one set of latencies."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from tests.support.records import record
from threadbridge.admin.view import SHOWN_OF_PROCESSES, view
from threadbridge.telemetry.history import SLOT, SLOTS, History, bin_of

NOW = 1_800_000_000.0


def process(key: str, slots: dict[str, Any]) -> dict[str, Any]:
    """The document of one process."""
    document = dict.fromkeys(SHOWN_OF_PROCESSES, "") | {"key": key, "counts": {}, "requests": [], "finished": []}
    return {**document, "now": NOW, "slots": slots}


def answered(*latencies: tuple[float, float]) -> dict[str, Any]:
    """The slots of a process that has answered requests so many seconds ago, with these latencies."""
    return {
        str(int(NOW - ago) // SLOT): {"endings": {"done": 1}, "bins": {str(bin_of(latency)): 1}}
        for ago, latency in latencies
    }


def test_latencies_are_those_of_all_processes_in_the_last_minute() -> None:
    own, other = answered((0, 0.01), (20, 0.01), (70, 100.0)), answered((40, 1.0), (600, 100.0))
    found = view([process("a", own), process("b", other)], [])["latencies"]
    assert [found["p50"], found["p95"], found["p99"]] == pytest.approx([0.01, 1.0, 1.0], rel=0.1)
    assert set(view([process("c", answered((70, 100.0)))], [])["latencies"].values()) == {None}


def test_quantiles_of_several_processes_are_true_to_five_per_cent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: NOW)
    generator = random.Random(3)
    whole = [generator.lognormvariate(-3, 1) for _ in range(4000)]
    histories = [History(), History()]
    for number, total in enumerate(whole):
        histories[number % 2].read([record(total=total, started_at=NOW - total)])
    # As they come from another process.
    several = [json.loads(json.dumps(history.slots())) for history in histories]
    slots = view([process("a", several[0]), process("b", several[1])], [])["history"]
    assert [slot["from"] for slot in slots] == [NOW - SLOT * ago for ago in range(SLOTS - 1, -1, -1)]
    [slot] = [slot for slot in slots if slot["endings"]]
    assert slot["endings"] == {"done": 4000}
    whole.sort()
    for name, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99)):
        exact = whole[int(share * len(whole)) - 1]
        assert abs(slot[name] - exact) <= 0.06 * exact
