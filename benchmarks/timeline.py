"""Requests as bars on a time axis, one panel for each server, drawn as SVG."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import NamedTuple

from benchmarks.drawing import MARGIN, WIDTH, framed

ROW = 3
CHART_TOP = 40
PAGE_ROW = 10
# Where the magnified view of a chart begins, and the height of the numbers below a chart.
LENS_LEFT = 196
AXIS = 18

STYLE = """path, line { fill: none; }
.wait, .run, .held { stroke-width: 2; }
.wait { stroke: var(--wait); } .run { stroke: var(--run); } .held { stroke: var(--held); }
.page { stroke: var(--page); stroke-width: 4; }
.grid { stroke: var(--grid); }
.lens { stroke: var(--edge); stroke-dasharray: 2 3; }
.median { stroke: var(--ink); stroke-dasharray: 4 3; }
.pagename { fill: var(--page); }
.over { paint-order: stroke; stroke: var(--paper); stroke-width: 6px; }
"""


class Bar(NamedTuple):
    """A request: when its query began and ended, when it was answered. Seconds since all were sent."""

    began: float
    ended: float
    answered: float


@dataclass(frozen=True)
class Panel:
    """A server's run: the requests from the top to the bottom, and when the page was sent and answered."""

    title: str
    bars: Sequence[Bar]
    page: tuple[float, float]

    @property
    def makespan(self) -> float:
        return max(bar.answered for bar in self.bars)

    @property
    def median(self) -> float:
        return statistics.median(bar.answered for bar in self.bars)

    @property
    def page_wait(self) -> float:
        return self.page[1] - self.page[0]


def picture(panels: Sequence[Panel], title: str) -> str:
    """The panels below each other on one time axis; what is short beside the longest is magnified too."""
    longest = max(panel.makespan for panel in panels)
    scale = (WIDTH - 2 * MARGIN) / (longest * 1.02)
    parts = [legend(title)]
    top = 92
    for number, panel in enumerate(panels):
        drawn, height = draw(panel, f"panel{number}", scale)
        parts.append(f'<g transform="translate({MARGIN} {top})">{drawn}</g>')
        top += height + 26
    return framed("\n".join(parts), top, STYLE, description(title, panels))


def description(title: str, panels: Sequence[Panel]) -> str:
    return f"{title}. " + " ".join(
        f"{panel.title}: last answer after {panel.makespan:.2f} s, median {panel.median:.2f} s, "
        f"the page after {duration(panel.page_wait)}."
        for panel in panels
    )


def legend(title: str) -> str:
    parts = [f'<text class="title" x="{MARGIN}" y="36">{escape(title)}</text>']
    left = MARGIN
    for kind, label, width in (
        ("wait", "waits for a connection", 180),
        ("run", "query runs", 114),
        ("held", "result is ready, answer held back", 246),
        ("page", "a page that needs no query", 0),
    ):
        parts.append(f'<path class="{kind}" style="stroke-width:8" d="M{left} 60h16"/>')
        parts.append(f'<text x="{left + 22}" y="64">{label}</text>')
        left += width
    return "".join(parts)


def draw(panel: Panel, name: str, scale: float) -> tuple[str, int]:
    """A panel at its own origin, and its height. ``scale`` is in pixels per second."""
    bottom = CHART_TOP + PAGE_ROW + ROW * len(panel.bars)
    right = WIDTH - 2 * MARGIN
    end = panel.makespan * scale
    parts = [f'<text class="name" x="0" y="14">{escape(panel.title)}</text>', figures(panel, right)]
    is_short = end < LENS_LEFT / 2
    axis_end = LENS_LEFT if is_short else right
    parts.append(grid(scale, [float(second) for second in range(0, int(axis_end / scale) + 1, 5)], bottom))
    parts.append(f'<g id="{name}">{bars(panel, scale)}</g>')
    if not is_short:
        parts.append(marks(panel, scale, bottom, right))
        return "".join(parts), bottom + AXIS
    lens_scale = (right - LENS_LEFT) / (panel.makespan * 1.04)
    halves = [half / 2 for half in range(int(2 * panel.makespan * 1.04) + 1)]
    left = end + 4
    parts.append(
        f'<path class="lens" d="M{left:.1f} {CHART_TOP}H{LENS_LEFT - 6}M{left:.1f} {bottom}H{LENS_LEFT - 6}"/>'
        f'<text class="middle over" x="{(left + LENS_LEFT - 6) / 2:.1f}" y="{(CHART_TOP + bottom) / 2 + 4:g}">'
        f"{lens_scale / scale:.1f}&#215; as wide</text>"
        f'<g transform="translate({LENS_LEFT} 0)">{grid(lens_scale, halves, bottom)}'
        f'<use href="#{name}" transform="scale({lens_scale / scale:.4f} 1)"/>'
        f"{marks(panel, lens_scale, bottom, right - LENS_LEFT)}</g>"
    )
    return "".join(parts), bottom + AXIS


def figures(panel: Panel, right: float) -> str:
    shown = (("last answer", panel.makespan), ("median", panel.median), ("page", panel.page_wait))
    spans = " · ".join(f'{label} <tspan class="number">{duration(value)}</tspan>' for label, value in shown)
    return f'<text class="end" x="{right}" y="14">{spans}</text>'


def grid(scale: float, seconds: Sequence[float], bottom: int) -> str:
    lines = "".join(f"M{second * scale:.1f} {CHART_TOP}V{bottom}" for second in seconds)
    numbers = "".join(
        f'<text class="middle" x="{second * scale:.1f}" y="{bottom + 14}">{second:g}{" s" if second else ""}</text>'
        for second in seconds
    )
    return f'<path class="grid" d="{lines}"/>{numbers}'


def bars(panel: Panel, scale: float) -> str:
    wait, run, held = [], [], []
    for number, bar in enumerate(panel.bars):
        y = f"{CHART_TOP + PAGE_ROW + ROW * number + 1}"
        began, ended, answered = (f"{moment * scale:.2f}" for moment in bar)
        wait.append(f"M0 {y}H{began}")
        run.append(f"M{began} {y}H{ended}")
        held.append(f"M{ended} {y}H{answered}")
    sent, answered = (f"{moment * scale:.2f}" for moment in panel.page)
    return (
        f'<path class="wait" d="{"".join(wait)}"/><path class="run" d="{"".join(run)}"/>'
        f'<path class="held" d="{"".join(held)}"/>'
        f'<path class="page" d="M{sent} {CHART_TOP + 4}H{answered}"/>'
    )


def marks(panel: Panel, scale: float, bottom: int, right: int) -> str:
    x = panel.median * scale
    word_width = 46
    parts = [
        f'<path class="median" d="M{x:.1f} {CHART_TOP - 4}V{bottom}"/>'
        f'<text class="middle" x="{min(x, right - word_width / 2):.1f}" y="{CHART_TOP - 8}">median</text>'
    ]
    if panel.page_wait * scale < 4:
        x = panel.page[0] * scale
        # Too short to be seen as a bar.
        parts.append(f'<path class="page" d="M{x - 1:.1f} {CHART_TOP + 4}h4"/>')
        parts.append(
            f'<text class="pagename" x="{x + 8:.1f}" y="{CHART_TOP + 7}">page: {duration(panel.page_wait)}</text>'
        )
    return "".join(parts)


def duration(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms" if seconds < 0.1 else f"{seconds:.2f} s"
