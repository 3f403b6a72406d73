"""The document that the operators' page shows: several processes as one."""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from threadbridge.admin.snapshot import MOST_ROWS
from threadbridge.telemetry.history import KEPT_A_SECOND, MINUTE, SLOT, SLOTS, quantiles

SHOWN_OF_PROCESSES = ("key", "pid", "addresses", "admin", "started", "draining", "lanes", "counts")


def view(processes: Sequence[dict[str, Any]], unreachable: Sequence[dict[str, str]]) -> dict[str, Any]:
    """All processes as one, the first of which is this one; each counts once, even if several frontends know it."""
    own = processes[0]
    processes = list({process["key"]: process for process in [*processes, own]}.values())
    processes.sort(key=lambda process: (process["addresses"], process["pid"]))
    counts: Counter[str] = Counter()
    endings: defaultdict[int, Counter[str]] = defaultdict(Counter)
    bins: defaultdict[int, Counter[int]] = defaultdict(Counter)
    for process in processes:
        counts.update(process["counts"])
        for number, slot in process["slots"].items():
            endings[int(number)].update(slot["endings"])
            bins[int(number)].update({int(bin_number): count for bin_number, count in slot["bins"].items()})
    now = int(own["now"]) // SLOT
    last_minute = sum((bins[number] for number in range(now - MINUTE // SLOT + 1, now + 1)), Counter[int]())
    rows = [_unique(row, process["key"]) for process in processes for row in process["requests"]]
    return {
        "now": own["now"],
        "process": own["key"],
        "processes": [{name: process[name] for name in SHOWN_OF_PROCESSES} for process in processes],
        "unreachable": unreachable,
        "counts": counts,
        # Running requests before waiting ones, and the oldest first.
        "requests": heapq.nsmallest(MOST_ROWS, rows, key=lambda row: (not row["running"], row["since"])),
        "finished": _slowest([_unique(bar, process["key"]) for process in processes for bar in process["finished"]]),
        "kept_a_second": KEPT_A_SECOND,
        "latencies": quantiles(last_minute),
        "slot": SLOT,
        # The last 15 minutes, oldest first.
        "history": [
            {"from": number * SLOT, "endings": endings[number], **quantiles(bins[number])}
            for number in range(now - SLOTS + 1, now + 1)
        ],
    }


def _unique(row: dict[str, Any], process: str) -> dict[str, Any]:
    """The row with its process, and with a key that no row of another process has; refused requests have no key."""
    return {**row, "process": process, "key": row["key"] and f"{process}-{row['key']}"}


def _slowest(bars: list[dict[str, Any]]) -> list[dict[str, Any]]:
    kept: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for bar in bars:
        kind = "done" if bar["ending"] == "done" else "other"
        kept.setdefault((int(bar["received"] + bar["total"]), kind), []).append(bar)
    return [
        bar
        for (_, kind), ended in sorted(kept.items())
        for bar in heapq.nlargest(KEPT_A_SECOND[kind], ended, key=lambda bar: bar["total"])
    ]
