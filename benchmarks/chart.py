"""The results as a picture: for each load, bars with what each server answers beside threadbridge."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

from benchmarks.contenders import BY_NAME, THREADBRIDGE
from benchmarks.drawing import MARGIN, WIDTH, framed
from benchmarks.report import Memory, Results, Spread, ratios, spread, together
from benchmarks.rounds import Series
from benchmarks.workloads import WORKLOADS

# What the picture for the documentation shows.
MAIN = ("hello", "select", "page", "upload", "download")
COLUMNS = 2
GAP = 28
ROW = 18
HEAD = 26
NAMES = 165
NUMBERS = 40
PANEL = (WIDTH - 2 * MARGIN - GAP * (COLUMNS - 1)) / COLUMNS
TOP = 84
STYLE = """.ours { fill: var(--run); } .theirs { fill: var(--wait); } .range { stroke: var(--quiet); fill: none; }
.number { paint-order: stroke; stroke: var(--paper); stroke-width: 4px; }
.our { font-weight: 600; fill: var(--ink); }
.one { stroke: var(--run); stroke-dasharray: 2 3; }
"""


class Bar(NamedTuple):
    """A server's figure as a multiple of threadbridge's; None when it has none, ``remark`` says why."""

    server: str
    ratio: Spread | None
    remark: str = ""


class Panel(NamedTuple):
    title: str
    bars: Sequence[Bar]


def picture(results: Results, memory: Memory) -> str:
    panels = [Panel(WORKLOADS[name].title, throughput_bars(by_server)) for name, by_server in results.items()]
    if memory.get(THREADBRIDGE.name):
        panels.append(Panel("Memory when idle, all processes (shorter is better)", memory_bars(memory)))
    heights = [HEAD + ROW * len(panel.bars) for panel in panels]
    parts = [
        f'<text class="title" x="{MARGIN}" y="36">Requests per second beside threadbridge</text>',
        f'<text x="{MARGIN}" y="58">Longer is better; the thin line is the range of the rounds.'
        " One process, ten threads, the same application, one machine.</text>",
    ]
    if any(bar.ratio and bar.remark for panel in panels for bar in panel.bars):
        parts.append(f'<text class="end" x="{WIDTH - MARGIN}" y="36">* with errors or remarks: see the table</text>')
    top = float(TOP)
    for first in range(0, len(panels), COLUMNS):
        for column, panel in enumerate(panels[first : first + COLUMNS]):
            left = MARGIN + column * (PANEL + GAP)
            parts.append(f'<g transform="translate({left:g} {top:g})">{draw(panel)}</g>')
        top += max(heights[first : first + COLUMNS]) + GAP
    return framed("\n".join(parts), top, STYLE, description(panels))


def throughput_bars(by_server: Mapping[str, Series]) -> list[Bar]:
    ours = by_server[THREADBRIDGE.name]
    bars = []
    for server, series in by_server.items():
        if BY_NAME[server].is_bound:
            continue
        remark = "with errors" if series.errors else "; ".join(series.remarks)
        bars.append(Bar(server, ratios(series, ours), remark))
    return sorted(bars, key=lambda bar: -bar.ratio.median if bar.ratio else 0.0)


def memory_bars(memory: Memory) -> list[Bar]:
    ours = statistics.median(together(footprints).proportional for footprints in memory[THREADBRIDGE.name])
    bars = [
        Bar(
            server,
            spread([together(footprints).proportional / ours for footprints in starts]) if starts else None,
            "" if starts else "does not start",
        )
        for server, starts in memory.items()
    ]
    return sorted(bars, key=lambda bar: bar.ratio.median if bar.ratio else float("inf"))


def draw(panel: Panel) -> str:
    """A panel at its own origin."""
    longest = max((bar.ratio.highest for bar in panel.bars if bar.ratio), default=1.0)
    scale = (PANEL - NAMES - NUMBERS) / max(longest, 1.0)
    one = NAMES + scale
    parts = [f'<text class="number" x="0" y="12">{escape(panel.title)}</text>']
    bottom = HEAD + ROW * len(panel.bars) - 4
    parts.append(f'<path class="one" d="M{one:.1f} {HEAD - 4}V{bottom}"/>')
    for number, bar in enumerate(panel.bars):
        parts.append(draw_bar(bar, HEAD + ROW * number, scale))
    return "".join(parts)


def draw_bar(bar: Bar, y: int, scale: float) -> str:
    is_ours = bar.server == THREADBRIDGE.name
    name_class = "our end" if is_ours else "end"
    name = f'<text class="{name_class}" x="{NAMES - 8}" y="{y + 10}">{escape(BY_NAME[bar.server].title)}</text>'
    if bar.ratio is None:
        return f'{name}<text x="{NAMES}" y="{y + 10}">{escape(bar.remark)}</text>'
    width = bar.ratio.median * scale
    low, high = NAMES + bar.ratio.lowest * scale, NAMES + bar.ratio.highest * scale
    mark = "*" if bar.remark else ""
    hint = f"<title>{escape(bar.remark)}</title>" if bar.remark else ""
    return (
        f'{name}<rect class="{"ours" if is_ours else "theirs"}" x="{NAMES}" y="{y}" width="{width:.1f}" height="12">'
        f'{hint}</rect><path class="range" d="M{low:.1f} {y + 6}H{high:.1f}"/>'
        f'<text class="number" x="{max(high, NAMES + width) + 6:.1f}" y="{y + 10}">{bar.ratio.median:.2f}{mark}</text>'
    )


def description(panels: Sequence[Panel]) -> str:
    return " ".join(
        f"{panel.title}: "
        + ", ".join(
            f"{BY_NAME[bar.server].title} {bar.ratio.median:.2f}" if bar.ratio else f"{BY_NAME[bar.server].title} none"
            for bar in panel.bars
        )
        + "."
        for panel in panels
    )
