"""The results as a text in Markdown and as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks import THREADS, report
from benchmarks.mixed.figures import duration
from benchmarks.mixed.long_clients import COLD, LONG_CLIENTS, STYLES, Change, Share
from benchmarks.mixed.reports import MIXES, PARTS, Report, Served

# What threadbridge must reach: long queries run on nine of ten connections, but for the moments in between.
MUST_SHARE = 0.88
# Seconds in which 99 % of short queries, and all of them, must be answered among long ones, once kinds are known; and
# after how many durations of a kind that has become long the others must be served as before.
MUST_MOST, MUST_WORST, MUST_RECOVER = 0.05, 0.3, 3.0
# The load whose figures the documentation shows.
MAIN_LOAD = 0.9


@dataclass
class Results:
    """By server: of each style; of the change; of each mix and load. ``costs`` and ``capacity`` are of each mix."""

    styles: dict[str, dict[str, Share]] = field(default_factory=dict)
    change: dict[str, Change] = field(default_factory=dict)
    loads: dict[str, dict[float, dict[str, Served]]] = field(default_factory=dict)
    costs: dict[str, dict[Report, float]] = field(default_factory=dict)
    capacity: dict[str, float] = field(default_factory=dict)


def markdown(results: Results, titles: Mapping[str, str], about: Mapping[str, Any]) -> str:
    """:param titles: the servers' names in the text."""
    machine = about["machine"]
    parts = [
        "# Short queries among long ones",
        f"{about['measured']}, {machine['processor']}, {machine['processors']} processors, Python {machine['python']},"
        f" MariaDB {machine['mariadb']}; load before the start {about['load_before']:.2f}.",
        f"One process, {THREADS} threads, {THREADS} database connections. docs/benchmarks.md explains the figures.",
    ]
    for name, by_server in results.styles.items():
        parts += [
            f"## {LONG_CLIENTS} clients ask for queries of {about['long']:g} s: {STYLES[name].title}",
            style_table(by_server, titles, min(COLD, about["seconds"] / 3)),
        ]
    if results.change:
        parts += [
            f"## Queries of {LONG_CLIENTS} clients become {about['long']:g} s long",
            change_table(results.change, titles, about["long"]),
        ]
    for name, by_load in results.loads.items():
        parts.append(f"## The application's reports: {MIXES[name].title}")
        parts.append(costs_text(name, results))
        for load, of_servers in by_load.items():
            parts += [f"### {load:g} times the capacity", load_table(of_servers, titles)]
    parts.append("Versions: " + ", ".join(f"{name} {version}" for name, version in about["versions"].items()) + ".")
    parts.append(f"threadbridge is {'' if about['compiled'] else 'not '}compiled.")
    return "\n\n".join(parts) + "\n"


def summary(results: Results, titles: Mapping[str, str], long: float) -> str:
    """The main figures as a table for the documentation, with a column for each server."""
    rows: list[tuple[str, dict[str, str]]] = []
    for name, shares in results.styles.items():
        rows.append(
            (f"short queries, {STYLES[name].title}", {server: share.after.text for server, share in shares.items()})
        )
        rows.append(
            ("worst in the beginning", {server: duration(share.first_worst) for server, share in shares.items()})
        )
        rows.append(("long queries' share", {server: f"{share.long_share:.2f}" for server, share in shares.items()}))
    if results.change:
        rows.append(
            ("a kind becomes long: time until served as before, in its durations", recoveries(results.change, long))
        )
    for name, by_load in results.loads.items():
        if served := by_load.get(MAIN_LOAD):
            title = f"reports at {MAIN_LOAD:g} of capacity, {MIXES[name].title}"
            rows.append((title, {server: each.short.text for server, each in served.items()}))
            rows.append(("long ones' slowdown", {server: f"{each.slowdown:.2f}" for server, each in served.items()}))
    servers = list(dict.fromkeys(server for _, figures in rows for server in figures))
    body = [[title, *(figures.get(server, "") for server in servers)] for title, figures in rows]
    return report.table([["", *(titles[server] for server in servers)], *body])


def recoveries(by_server: Mapping[str, Change], long: float) -> dict[str, str]:
    """How long it took until short queries were served as before, as a multiple of the long ones' duration."""
    return {
        server: "never" if change.recovered is None else f"{change.recovered / long:.2f}"
        for server, change in by_server.items()
    }


def style_table(by_server: Mapping[str, Share], titles: Mapping[str, str], cold: float) -> str:
    rows = [["server", f"worst, first {cold:.0f} s", "median", "99 %", "worst", "not served", "long queries' share"]]
    for server, share in by_server.items():
        after = share.after
        rows.append(
            [
                titles[server],
                *(duration(value) for value in (share.first_worst, after.median, after.most, after.worst)),
                str(share.refused),
                f"{share.long_share:.2f}" + (f", {share.long_refused} refused" if share.long_refused else ""),
            ]
        )
    return report.table(rows)


def change_table(by_server: Mapping[str, Change], titles: Mapping[str, str], long: float) -> str:
    rows = [["server", "99 % before", f"as before after (unit: {long:g} s)", "worst", "median since", "99 % since"]]
    recovered = recoveries(by_server, long)
    for server, change in by_server.items():
        rows.append(
            [
                titles[server],
                duration(change.before.most),
                recovered[server],
                *(duration(value) for value in (change.worst, change.after.median, change.after.most)),
            ]
        )
    return report.table(rows)


def costs_text(name: str, results: Results) -> str:
    costs, mix = results.costs[name], MIXES[name]
    ranges = []
    for part, portion in PARTS.items():
        of_part = [costs[report] for report in mix.reports if report.cost_class == part]
        ranges.append(f"{100 * portion:.0f} % {part} ({duration(min(of_part))} to {duration(max(of_part))})")
    return f"{', '.join(ranges)}; capacity {results.capacity[name]:.1f} requests/s."


def load_table(by_server: Mapping[str, Served], titles: Mapping[str, str]) -> str:
    head = [
        "server",
        "short: median",
        "99 %",
        "worst",
        "medium: 99 %",
        "long: slowdown",
        "refused",
        "unanswered",
        "work",
    ]
    rows = [head]
    for server, served in by_server.items():
        rows.append(
            [
                titles[server],
                *(duration(value) for value in (*served.short[1:], served.medium.most)),
                f"{served.slowdown:.2f}",
                counts(served.refused),
                counts(served.unanswered),
                f"{served.work:.2f}",
            ]
        )
    return report.table(rows)


def counts(by_class: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {part}" for part, count in by_class.items() if count) or "0"


def as_json(results: Results, about: Mapping[str, Any]) -> str:
    """Times are in seconds; ``long_share`` and ``work`` are parts of what ten connections can do."""
    whole = {
        **about,
        "styles": {name: facts(by_server) for name, by_server in results.styles.items()},
        "change": facts(results.change),
        "mixes": {
            name: {
                "capacity": results.capacity[name],
                "costs": [{**report._asdict(), "cost": cost} for report, cost in results.costs[name].items()],
                "loads": {str(load): facts(of_servers) for load, of_servers in by_load.items()},
            }
            for name, by_load in results.loads.items()
        },
    }
    return json.dumps(rounded(whole), indent=1, ensure_ascii=False) + "\n"


def facts(by_server: Mapping[str, Share] | Mapping[str, Change] | Mapping[str, Served]) -> dict[str, Any]:
    return {server: asdict(figures) for server, figures in by_server.items()}


def rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 5)
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    if hasattr(value, "_asdict"):
        return rounded(value._asdict())
    return [rounded(each) for each in value] if isinstance(value, list | tuple) else value


def missed(results: Results, server: str, long: float) -> list[str]:
    """What threadbridge must reach, and has not, where long queries take ``long`` seconds."""
    found = []
    for name, by_server in results.styles.items():
        share = by_server.get(server)
        if share and share.long_share < MUST_SHARE:
            found.append(f"{name}: the long queries' share is {share.long_share:.2f}, must be {MUST_SHARE}")
        if share and (share.after.most > MUST_MOST or share.after.worst > MUST_WORST):
            must = f"must be {duration(MUST_MOST)} and {duration(MUST_WORST)}"
            found.append(f"{name}: short queries take {share.after.text} (median, 99 %, slowest), {must}")
        if share and share.refused:
            found.append(f"{name}: {share.refused} short queries were not served")
    change = results.change.get(server)
    if change and (change.recovered is None or change.recovered > MUST_RECOVER * long):
        found.append(f"change: short queries are not served as before after {MUST_RECOVER:g} times {long:g} s")
    return found
