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


def test_processes_are_grouped_by_host_and_machine() -> None:
    lanes = [
        {"threads": 3, "busy": 2},
        # A remote lane's requests take no threads here.
        {"threads": 0, "busy": 9, "hosts": [{"name": "http://r1:1", "running": 9, "up": True}]},
    ]
    slots = {str(int(NOW) // SLOT): {"endings": {"failed": 2}, "bins": {}}, "7": {"endings": {"failed": 9}, "bins": {}}}

    def on(key: str, host: str, machine: str, via: str) -> dict[str, Any]:
        found = process(key, slots)
        return {**found, "host": host, "machine": machine, "via": via, "lanes": lanes, "counts": {"running": 1}}

    processes = [
        on("a", "web2", "1", ""),
        on("b", "web1", "2", "h1:1"),
        on("c", "web1", "2", "h1:2"),
        # Another machine of that name, and one of a version that does not tell its own.
        on("d", "web1", "3", "h9:1"),
        process("e", {}) | {"via": "h4:1"},
    ]
    found = view([processes[0], *processes], [])["hosts"]
    assert [(host["name"], host["via"], host["processes"], host["own"]) for host in found] == [
        ("h4:1", ["h4:1"], ["e"], False),
        ("web1", ["h1:1", "h1:2"], ["b", "c"], False),
        ("web1", ["h9:1"], ["d"], False),
        ("web2", [], ["a"], True),
    ]
    assert [(host["threads"], host["busy"], host["counts"], host["endings"]) for host in found] == [
        (0, 0, {}, {}),
        (6, 4, {"running": 2}, {"failed": 4}),
        (3, 2, {"running": 1}, {"failed": 2}),
        (3, 2, {"running": 1}, {"failed": 2}),
    ]


def test_only_the_requests_of_one_host_are_listed() -> None:
    row = {"key": "1", "running": 1, "since": NOW, "received": NOW, "total": 1.0, "ending": "done"}
    processes = [process(key, {}) | {"host": key, "requests": [row], "finished": [row]} for key in ("a", "b")]
    found = view(processes, [], "b")
    assert [each["key"] for each in found["requests"]] == [each["key"] for each in found["finished"]] == ["b-1"]
    assert len(found["processes"]) == 2


def test_times_are_by_the_clock_of_the_host_that_is_asked() -> None:
    row = {"key": "1", "running": 1, "since": NOW + 20, "received": NOW + 15}
    bar = {**row, "total": 1.0, "ending": "done"}
    ahead = process("b", {str((int(NOW) + 30) // SLOT): {"endings": {"done": 1}, "bins": {"5": 1}}})
    ahead |= {"now": NOW + 30, "requests": [row], "finished": [bar]}
    found = view([process("a", {}), ahead], [])
    [shown] = found["requests"]
    assert (shown["since"], shown["received"]) == (NOW - 10, NOW - 15)
    assert found["finished"][0]["received"] == NOW - 15
    assert found["history"][-1]["endings"] == {"done": 1}
    assert found["latencies"]["p50"] is not None
    # The answer of a process is a little older than the page.
    near = {**ahead, "now": NOW - 1}
    assert view([process("a", {}), near], [])["requests"][0]["since"] == NOW + 20
