"""The document that the operators' page shows: several processes in one picture."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Sequence
from typing import Any

from threadbridge.admin.snapshot import MOST_ROWS
from threadbridge.telemetry.history import KEPT_A_SECOND, SLOT, merged_slots


def view(own: dict[str, Any], others: Sequence[dict[str, Any]], silent: Sequence[dict[str, str]]) -> dict[str, Any]:
    """All processes as one: each once, however many ways lead to it."""
    processes = list({process["key"]: process for process in [*others, own]}.values())
    processes.sort(key=lambda process: (process["where"], process["pid"]))
    counts: Counter[str] = Counter()
    for process in processes:
        counts.update(process["counts"])
    rows = [_unique(row, process["key"]) for process in processes for row in process["requests"]]
    return {
        "now": own["now"],
        "process": own["key"],
        "processes": [
            {name: process[name] for name in ("key", "pid", "where", "admin", "started", "draining", "lanes", "counts")}
            for process in processes
        ],
        "silent": list(silent),
        "counts": counts,
        # What runs before what waits, and the longest first.
        "requests": heapq.nsmallest(MOST_ROWS, rows, key=lambda row: (not row["running"], row["since"])),
        "finished": _slowest([_unique(bar, process["key"]) for process in processes for bar in process["finished"]]),
        "kept_a_second": KEPT_A_SECOND,
        "slot": SLOT,
        "history": list(merged_slots(process["slots"] for process in processes)),
    }


def _unique(row: dict[str, Any], process: str) -> dict[str, Any]:
    """The row with its process, and with a key that no other process's row has; what was never a request has none."""
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
