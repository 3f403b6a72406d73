"""The document that the operators' page shows: several processes as one."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Sequence
from typing import Any

from threadbridge.admin.snapshot import MOST_ROWS
from threadbridge.telemetry.history import KEPT_A_SECOND, MINUTE, SLOT, merged_slots, quantiles

SHOWN_OF_PROCESSES = ("key", "pid", "addresses", "admin", "started", "draining", "lanes", "counts")


def view(
    own: dict[str, Any], others: Sequence[dict[str, Any]], unreachable: Sequence[dict[str, str]]
) -> dict[str, Any]:
    """All processes as one; each counts once, even if several peers know it."""
    processes = list({process["key"]: process for process in [*others, own]}.values())
    processes.sort(key=lambda process: (process["addresses"], process["pid"]))
    counts: Counter[str] = Counter()
    for process in processes:
        counts.update(process["counts"])
    rows = [_unique(row, process["key"]) for process in processes for row in process["requests"]]
    return {
        "now": own["now"],
        "process": own["key"],
        "processes": [{name: process[name] for name in SHOWN_OF_PROCESSES} for process in processes],
        "unreachable": list(unreachable),
        "counts": counts,
        # Running requests before waiting ones, and the oldest first.
        "requests": heapq.nsmallest(MOST_ROWS, rows, key=lambda row: (not row["running"], row["since"])),
        "finished": _slowest([_unique(bar, process["key"]) for process in processes for bar in process["finished"]]),
        "kept_a_second": KEPT_A_SECOND,
        "latencies": _latencies(processes, own["now"]),
        "slot": SLOT,
        "history": list(merged_slots(process["slots"] for process in processes)),
    }


def _unique(row: dict[str, Any], process: str) -> dict[str, Any]:
    """The row with its process, and with a key that no row of another process has; refused requests have no key."""
    return {**row, "process": process, "key": row["key"] and f"{process}-{row['key']}"}


def _latencies(processes: Sequence[dict[str, Any]], now: float) -> dict[str, float | None]:
    """The quantiles of the last minute in seconds, to the slot; None if nothing was answered."""
    first = int(now - MINUTE) // SLOT
    bins: Counter[int] = Counter()
    for process in processes:
        for number, slot in process["slots"].items():
            if int(number) > first:
                bins.update({int(bin_number): count for bin_number, count in slot["bins"].items()})
    return dict(zip(("p50", "p95", "p99"), quantiles(bins, (0.5, 0.95, 0.99)), strict=True))


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
