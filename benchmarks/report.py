"""The results as a text in Markdown and as JSON."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import MEGABYTE, THREADS
from benchmarks.contenders import BY_NAME, CONTENDERS, THREADBRIDGE
from benchmarks.environment import machine, versions
from benchmarks.rounds import Series
from benchmarks.workloads import WORKLOADS

# Of each workload, of each server.
Results = Mapping[str, Mapping[str, Series]]
# Of each server, of each start, of each process.
Memory = Mapping[str, Sequence[Sequence[int]]]


class Spread(NamedTuple):
    """A figure's median over the rounds, its lowest and its highest."""

    median: float
    lowest: float
    highest: float


def spread(values: Sequence[float]) -> Spread:
    return Spread(statistics.median(values), min(values), max(values))


def ratios(of: Series, to: Series) -> Spread | None:
    """How many times as many requests the one server answered as the other, round by round: there the machine is most
    alike. None when there is no round in which both did."""
    found = [
        one.measured.rate / other.measured.rate
        for one, other in zip(of.samples, to.samples, strict=True)
        if one and other
    ]
    return spread(found) if found else None


def table(rows: Sequence[Sequence[str]]) -> str:
    """In the form of Markdown; the first row is the head."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [rows[0], ["-" * width for width in widths], *rows[1:]]
    return "\n".join("| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in lines)


def markdown(results: Results, memory: Memory, facts: Mapping[str, Any]) -> str:
    machine = facts["machine"]
    parts = [
        "# threadbridge compared with other servers",
        f"{facts['measured']}, {machine['processor']}, {machine['processors']} processors, Python {machine['python']},"
        f" MariaDB {machine['mariadb']}; load before the start {facts['load_before']:.2f}.",
        f"One process, {THREADS} threads. Medians of the rounds ({facts['rounds']}), in parentheses the lowest and the"
        " highest. A ratio above 1 says that threadbridge answered more requests. A figure with ! has errors, which the"
        " last column tells.",
    ]
    for name, by_server in results.items():
        parts += [f"## {name}: {WORKLOADS[name].title}", workload_table(by_server)]
        if best := best_of_peers(by_server):
            parts.append(best)
    if memory:
        parts += ["## memory: An idle process that has answered many requests", memory_table(memory)]
    parts.append("Versions: " + ", ".join(f"{name} {version}" for name, version in facts["versions"].items()) + ".")
    return "\n\n".join(parts) + "\n"


def workload_table(by_server: Mapping[str, Series]) -> str:
    rows = [["server", "requests/s", "threadbridge / it", "median ms", "99 % ms", "processor µs", "remarks"]]
    ours = by_server[THREADBRIDGE.name]
    for server, series in by_server.items():
        title = BY_NAME[server].title
        if not (good := series.good):
            rows.append([title, "-", "-", "-", "-", "-", "; ".join(series.remarks)])
            continue
        rate = spread([sample.measured.rate for sample in good])
        ratio = ratios(ours, series)
        remarks = [*series.remarks, *(f"{count} {kind} errors" for kind, count in series.errors.items())]
        rows.append(
            [
                title,
                f"{rate.median:.0f}{'!' if series.errors else ''} ({rate.lowest:.0f}-{rate.highest:.0f})",
                "" if series is ours else shown_ratio(ratio),
                f"{statistics.median(sample.measured.p50 for sample in good):.2f}",
                f"{statistics.median(sample.measured.p99 for sample in good):.2f}",
                f"{statistics.median(sample.processor for sample in good):.0f}",
                "; ".join(remarks),
            ]
        )
    return table(rows)


def shown_ratio(ratio: Spread | None) -> str:
    return f"{ratio.median:.2f} ({ratio.lowest:.2f}-{ratio.highest:.2f})" if ratio else "-"


def best_of_peers(by_server: Mapping[str, Series]) -> str:
    """How far threadbridge is from the fastest of the others."""
    compared = [
        (ratio.median, BY_NAME[server].title)
        for server, series in by_server.items()
        if server != THREADBRIDGE.name and (ratio := ratios(by_server[THREADBRIDGE.name], series))
    ]
    if not compared:
        return ""
    lowest, title = min(compared)
    return f"The fastest of the others is {title}; threadbridge answered {lowest:.2f} times as many requests."


def memory_table(memory: Memory) -> str:
    rows = [["server", "the application's process, MB", "all processes, MB", "threadbridge / it"]]
    ours = statistics.median(map(max, memory[THREADBRIDGE.name])) if memory.get(THREADBRIDGE.name) else 0
    for server, starts in memory.items():
        if not starts:
            rows.append([BY_NAME[server].title, "does not start", "-", "-"])
            continue
        # The one that the application has been loaded into is the largest.
        largest = spread([max(processes) / MEGABYTE for processes in starts])
        total = spread([sum(processes) / MEGABYTE for processes in starts])
        rows.append(
            [
                BY_NAME[server].title,
                f"{largest.median:.1f} ({largest.lowest:.1f}-{largest.highest:.1f})",
                f"{total.median:.1f}",
                "" if server == THREADBRIDGE.name else f"{ours / MEGABYTE / largest.median:.2f}",
            ]
        )
    return table(rows)


def facts(environment: Path) -> dict[str, Any]:
    """What belongs to every result."""
    installed = versions(environment)
    packages = {"threadbridge", "tornado", "httptools", "uvloop", "flask", "dbutils", "mysqlclient"}
    packages |= {package.lower() for contender in CONTENDERS for package in contender.packages}
    return {
        "measured": time.strftime("%Y-%m-%d", time.gmtime()),
        "machine": machine(),
        "threads": THREADS,
        "versions": {name: installed[name] for name in sorted(packages) if name in installed},
    }


def as_json(results: Results, memory: Memory, about: Mapping[str, Any]) -> str:
    """Every sample; times in milliseconds, processor time in microseconds a request, memory in bytes."""
    workloads = {
        name: {
            "title": WORKLOADS[name].title,
            "servers": {
                server: {
                    "rate": [round(sample.measured.rate, 1) if sample else None for sample in series.samples],
                    "p50": [sample.measured.p50 if sample else None for sample in series.samples],
                    "p90": [sample.measured.p90 if sample else None for sample in series.samples],
                    "p99": [sample.measured.p99 if sample else None for sample in series.samples],
                    "longest": [sample.measured.longest if sample else None for sample in series.samples],
                    "processor": [round(sample.processor, 1) if sample else None for sample in series.samples],
                    "errors": series.errors,
                    "remarks": series.remarks,
                }
                for server, series in by_server.items()
            },
        }
        for name, by_server in results.items()
    }
    commands = {contender.name: " ".join((*contender.command, *contender.quiet)) for contender in CONTENDERS}
    whole = {**about, "commands": commands, "workloads": workloads, "memory": memory}
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"
