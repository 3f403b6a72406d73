"""The results as a text in Markdown and as JSON."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import MEGABYTE, THREADS
from benchmarks.contenders import BOUND, BY_NAME, CONTENDERS, THREADBRIDGE
from benchmarks.environment import machine, versions
from benchmarks.rounds import Sample, Series
from benchmarks.subject import Footprint
from benchmarks.workloads import WORKLOADS
from threadbridge.compiled import directory

HEAD = ("server", "requests/s", "threadbridge / it", "median ms", "99 % ms", "processor µs", "memory MB", "remarks")

# Of each workload, of each server.
Results = Mapping[str, Mapping[str, Series]]
# Of each server, of each start, of each process.
Memory = Mapping[str, Sequence[Sequence[Footprint]]]


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


def markdown(results: Results, memory: Memory, about: Mapping[str, Any]) -> str:
    """The whole report but for the hazards, which have a table of their own."""
    machine = about["machine"]
    parts = [
        "# threadbridge compared with other servers",
        f"{about['measured']}, {machine['processor']}, {machine['processors']} processors, Python {machine['python']},"
        f" MariaDB {machine['mariadb']}; load before the start {about['load_before']:.2f}.",
        f"One process, {THREADS} threads. Medians of the rounds ({about['rounds']}), in parentheses the lowest and the"
        " highest. A ratio above 1 says that threadbridge answered more requests. A figure with ! has errors, which the"
        " last column tells.",
    ]
    for name, by_server in results.items():
        parts += [f"## {name}: {WORKLOADS[name].title}, {about['seconds'][name]} s", workload_table(by_server)]
        parts += filter(None, (best_of_peers(by_server, is_bound=False), best_of_peers(by_server, is_bound=True)))
    if memory:
        parts += [
            "## memory: An idle server that has answered many requests",
            memory_table(memory, "the process with the application", with_application),
            memory_table(memory, "all processes", together),
        ]
    parts.append("Versions: " + ", ".join(f"{name} {version}" for name, version in about["versions"].items()) + ".")
    parts.append(f"threadbridge is {'' if about['compiled'] else 'not '}compiled.")
    return "\n\n".join(parts) + "\n"


def workload_table(by_server: Mapping[str, Series]) -> str:
    rows = [list(HEAD)]
    ours = by_server[THREADBRIDGE.name]
    for server, series in by_server.items():
        title = BY_NAME[server].title
        if not (good := series.good):
            rows.append([title, *["-"] * 6, "; ".join(series.remarks)])
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
                f"{statistics.median(sample.growth for sample in good) / MEGABYTE:+.1f}",
                "; ".join(remarks),
            ]
        )
    return table(rows)


def shown_ratio(ratio: Spread | None) -> str:
    return f"{ratio.median:.2f} ({ratio.lowest:.2f}-{ratio.highest:.2f})" if ratio else "-"


def best_of_peers(by_server: Mapping[str, Series], *, is_bound: bool) -> str:
    """How far threadbridge is from the fastest of the others; of those bound to one processor, or of the rest."""
    compared = [
        (ratio.median, BY_NAME[server].title)
        for server, series in by_server.items()
        if server != THREADBRIDGE.name
        and BY_NAME[server].is_bound is is_bound
        and (ratio := ratios(by_server[THREADBRIDGE.name], series))
    ]
    if not compared:
        return ""
    lowest, title = min(compared)
    others = "the others that are bound to one processor" if is_bound else "the others"
    return f"The fastest of {others} is {title}; threadbridge answered {lowest:.2f} times as many requests."


def with_application(footprints: Sequence[Footprint]) -> Footprint:
    """What the process has that the application was loaded into: it has most for itself."""
    return max(footprints, key=lambda footprint: footprint.unique)


def together(footprints: Sequence[Footprint]) -> Footprint:
    return Footprint(*map(sum, zip(*footprints, strict=True)))


def memory_table(memory: Memory, title: str, of: Callable[[Sequence[Footprint]], Footprint]) -> str:
    """:param of: makes one of those of a server's processes."""

    def medians(starts: Sequence[Sequence[Footprint]]) -> list[float]:
        return [statistics.median(measure) for measure in zip(*map(of, starts), strict=True)]

    rows = [[f"server: {title}, MB"]]
    for measure in ("RSS", "anonymous", "PSS", "USS"):
        rows[0] += [measure, "threadbridge / it"]
    ours = medians(memory[THREADBRIDGE.name])
    for server, starts in memory.items():
        row = [BY_NAME[server].title]
        rows.append(row)
        if not starts:
            row += ["does not start", *["-"] * 7]
            continue
        is_compared = ours and server != THREADBRIDGE.name
        for number, size in enumerate(medians(starts)):
            row += [f"{size / MEGABYTE:.1f}", f"{ours[number] / size:.2f}" if is_compared else ""]
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
        "compiled": directory().is_dir(),
        "versions": {name: installed[name] for name in sorted(packages) if name in installed},
    }


def as_json(results: Results, memory: Memory, about: Mapping[str, Any]) -> str:
    """Every sample; times in milliseconds, processor time in microseconds a request, memory in bytes."""
    workloads = {
        name: {
            "title": WORKLOADS[name].title,
            "servers": {server: series_facts(series) for server, series in by_server.items()},
        }
        for name, by_server in results.items()
    }
    commands = {contender.name: " ".join((*contender.command, *contender.quiet)) for contender in (*CONTENDERS, *BOUND)}
    footprints = {
        server: [[footprint._asdict() for footprint in processes] for processes in starts]
        for server, starts in memory.items()
    }
    whole = {**about, "commands": commands, "workloads": workloads, "memory": footprints}
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


def series_facts(series: Series) -> dict[str, Any]:
    def column(value: Callable[[Sample], float]) -> list[float | None]:
        return [round(value(sample), 3) if sample else None for sample in series.samples]

    return {
        "rate": column(lambda sample: sample.measured.rate),
        "p50": column(lambda sample: sample.measured.p50),
        "p90": column(lambda sample: sample.measured.p90),
        "p99": column(lambda sample: sample.measured.p99),
        "longest": column(lambda sample: sample.measured.longest),
        "processor": column(lambda sample: sample.processor),
        "growth": column(lambda sample: sample.growth),
        "errors": series.errors,
        "remarks": series.remarks,
    }
