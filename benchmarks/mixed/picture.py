"""The latencies of short queries as a picture: on a logarithmic axis, from the median to the slowest."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

from benchmarks.contenders import THREADBRIDGE
from benchmarks.drawing import MARGIN, WIDTH, framed
from benchmarks.mixed.figures import Latencies, duration
from benchmarks.mixed.long_clients import LONG_CLIENTS, STYLES
from benchmarks.mixed.report import MAIN_LOAD, Results

SERVERS = (THREADBRIDGE.name, "granian", "gthread", "executor")
# The style and the mix that it shows.
STYLE, MIX = "parameter", "waiting"
NAMES = 178
NUMBERS = 216
ROW = 26
TOP = 84
HEAD = 34
AXIS = 34
# Seconds at the ends of the axis.
FIRST, LAST = 0.001, 100.0
STYLE_SHEET = """path { fill: none; }
.ours { stroke: var(--run); fill: var(--run); } .theirs { stroke: var(--quiet); fill: var(--quiet); }
.range { stroke-width: 3; } .worst { stroke-width: 2; }
.hollow { fill: var(--paper); stroke-width: 2; }
.grid { stroke: var(--grid); }
.our { font-weight: 600; fill: var(--ink); }
"""


class Panel(NamedTuple):
    title: str
    servers: Mapping[str, Latencies]


def picture(results: Results, titles: Mapping[str, str], long: float) -> str:
    panels = panels_of(results, long)
    parts = [
        f'<text class="title" x="{MARGIN}" y="36">How long short requests take among long ones</text>',
        legend(),
    ]
    top = TOP
    for panel in panels:
        parts.append(f'<g transform="translate({MARGIN} {top})">{draw(panel, titles)}</g>')
        top += HEAD + ROW * len(panel.servers) + AXIS
    return framed("\n".join(parts), top, STYLE_SHEET, description(panels, titles))


def panels_of(results: Results, long: float) -> list[Panel]:
    panels = []
    if by_server := results.styles.get(STYLE):
        title = f"A 2 ms SELECT while {LONG_CLIENTS} clients ask for {long:g} s queries, {STYLES[STYLE].title}"
        panels.append(Panel(title, {name: share.after for name, share in by_server.items()}))
    if served := results.loads.get(MIX, {}).get(MAIN_LOAD):
        title = f"Reports of 2 to 20 ms at {MAIN_LOAD:g} of the capacity, 5 % of the requests take seconds"
        panels.append(Panel(title, {name: figures.short for name, figures in served.items()}))
    return [
        Panel(title, {name: servers[name] for name in SERVERS if name in servers and servers[name].requests})
        for title, servers in panels
    ]


def legend() -> str:
    x, y = MARGIN, 56
    return (
        f'<circle class="theirs" cx="{x + 5}" cy="{y}" r="5"/><text x="{x + 16}" y="{y + 4}">median</text>'
        f'<circle class="theirs hollow" cx="{x + 81}" cy="{y}" r="4"/><text x="{x + 92}" y="{y + 4}">99 %</text>'
        f'<path class="theirs worst" d="M{x + 145} {y - 6}v12"/><text x="{x + 154}" y="{y + 4}">slowest</text>'
        f'<text class="end" x="{WIDTH - MARGIN}" y="{y + 4}">One process, ten threads, ten database connections.'
        " Further left is better.</text>"
    )


def place(seconds: float) -> float:
    """Where on the axis."""
    width = WIDTH - 2 * MARGIN - NAMES - NUMBERS
    part = math.log(min(max(seconds, FIRST), LAST) / FIRST) / math.log(LAST / FIRST)
    return NAMES + width * part


def draw(panel: Panel, titles: Mapping[str, str]) -> str:
    """A panel at its own origin."""
    bottom = HEAD + ROW * len(panel.servers)
    decades = [10.0**power for power in range(round(math.log10(FIRST)), round(math.log10(LAST)) + 1)]
    lines = "".join(f"M{place(decade):.1f} {HEAD - 8}V{bottom}" for decade in decades)
    numbers = "".join(
        f'<text class="middle" x="{place(decade):.1f}" y="{bottom + 14}">{axis_label(decade)}</text>'
        for decade in decades
    )
    parts = [f'<text class="number" x="0" y="12">{escape(panel.title)}</text><path class="grid" d="{lines}"/>{numbers}']
    parts += [
        draw_row(titles[name], latencies, HEAD + ROW * number + ROW // 2, is_ours=name == THREADBRIDGE.name)
        for number, (name, latencies) in enumerate(panel.servers.items())
    ]
    return "".join(parts)


def axis_label(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms" if seconds < 1 else f"{seconds:.0f} s"


def draw_row(title: str, latencies: Latencies, y: int, *, is_ours: bool) -> str:
    whose = "ours" if is_ours else "theirs"
    median, most, worst = (place(seconds) for seconds in latencies[1:])
    return (
        f'<text class="{"our " if is_ours else ""}end" x="{NAMES - 14}" y="{y + 4}">{escape(title)}</text>'
        f'<path class="{whose} range" d="M{median:.1f} {y}H{worst:.1f}"/>'
        f'<path class="{whose} worst" d="M{worst:.1f} {y - 6}v12"/>'
        f'<circle class="{whose} hollow" cx="{most:.1f}" cy="{y}" r="4"/>'
        f'<circle class="{whose}" cx="{median:.1f}" cy="{y}" r="5"/>'
        f'<text class="number end" x="{WIDTH - 2 * MARGIN}" y="{y + 4}">{latencies.text}</text>'
    )


def description(panels: Sequence[Panel], titles: Mapping[str, str]) -> str:
    return " ".join(
        f"{panel.title}: "
        + "; ".join(
            f"{titles[name]} median {duration(each.median)}, 99 % {duration(each.most)}, slowest {duration(each.worst)}"
            for name, each in panel.servers.items()
        )
        + "."
        for panel in panels
    )
