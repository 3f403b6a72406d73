"""The document that the operators' page shows: several processes, on several hosts, as one."""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from threadbridge.admin.snapshot import MOST_ROWS
from threadbridge.telemetry.history import KEPT_A_SECOND, MINUTE, SLOT, SLOTS, quantiles

SHOWN_OF_PROCESSES = ("key", "pid", "addresses", "admin", "started", "draining", "lanes", "counts")
# Seconds by which the clocks of two hosts may differ without notice: a process's answer is as old.
SAME_TIME = 2.0


def view(processes: Sequence[dict[str, Any]], unreachable: Sequence[dict[str, Any]], host: str = "") -> dict[str, Any]:
    """All processes as one, the first of which is this one; each counts once, even if several frontends know it.

    :param host: if given, list only requests on the hosts of this name.
    """
    own = processes[0]
    processes = list({process["key"]: process for process in [*processes, own]}.values())
    processes = [_by_clock(process, own["now"]) for process in processes]
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
    minute = range(now - MINUTE // SLOT + 1, now + 1)
    listed = [process for process in processes if not host or _host_of(process) == host]
    rows = [_unique(row, process["key"]) for process in listed for row in process["requests"]]
    return {
        "now": own["now"],
        "process": own["key"],
        "processes": [{name: process[name] for name in SHOWN_OF_PROCESSES} for process in processes],
        "hosts": _hosts(processes, own["key"], minute),
        "unreachable": unreachable,
        "counts": counts,
        # Running requests before waiting ones, and the oldest first.
        "requests": heapq.nsmallest(MOST_ROWS, rows, key=lambda row: (not row["running"], row["since"])),
        "finished": _slowest([_unique(bar, process["key"]) for process in listed for bar in process["finished"]]),
        "kept_a_second": KEPT_A_SECOND,
        "latencies": quantiles(sum((bins[number] for number in minute), Counter[int]())),
        "slot": SLOT,
        # The last 15 minutes, oldest first.
        "history": [
            {"from": number * SLOT, "endings": endings[number], **quantiles(bins[number])}
            for number in range(now - SLOTS + 1, now + 1)
        ],
    }


def _by_clock(process: dict[str, Any], now: float) -> dict[str, Any]:
    """The process with its times by the clock of this one, if its own host's differs."""
    ahead = process["now"] - now
    if abs(ahead) <= SAME_TIME:
        return process
    slots = {str(int(number) - round(ahead / SLOT)): slot for number, slot in process["slots"].items()}
    requests = [
        {**row, "since": row["since"] - ahead, "received": row["received"] - ahead} for row in process["requests"]
    ]
    finished = [{**bar, "received": bar["received"] - ahead} for bar in process["finished"]]
    return {**process, "slots": slots, "requests": requests, "finished": finished}


def _host_of(process: dict[str, Any]) -> str:
    # An earlier version does not tell its host.
    return str(process.get("host") or process.get("via", ""))


def _hosts(processes: Sequence[dict[str, Any]], own: str, minute: range) -> list[dict[str, Any]]:
    """The hosts, each with its processes, and with sums of these: lanes' threads, counts, the last minute."""
    groups: defaultdict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for process in processes:
        groups[_host_of(process), process.get("machine", "")].append(process)
    hosts = []
    for (name, _), group in sorted(groups.items()):
        counts: Counter[str] = Counter()
        endings: Counter[str] = Counter()
        bins: Counter[int] = Counter()
        for process in group:
            counts.update(process["counts"])
            for number, slot in process["slots"].items():
                if int(number) in minute:
                    endings.update(slot["endings"])
                    bins.update({int(bin_number): count for bin_number, count in slot["bins"].items()})
        # Those of remote lanes are requests that run elsewhere.
        lanes = [lane for process in group for lane in process["lanes"] if not lane.get("hosts")]
        keys = [process["key"] for process in group]
        hosts.append(
            {
                "name": name,
                # How this process reaches them.
                "via": sorted({process["via"] for process in group if process.get("via")}),
                "own": own in keys,
                "processes": keys,
                "draining": sum(bool(process["draining"]) for process in group),
                "threads": sum(lane["threads"] for lane in lanes),
                "busy": sum(lane["busy"] for lane in lanes),
                "counts": counts,
                "endings": endings,
                "latencies": quantiles(bins),
            }
        )
    return hosts


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
