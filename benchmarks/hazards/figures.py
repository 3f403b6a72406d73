"""The figures: how each is shown, and what threadbridge must reach in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from benchmarks import report
from benchmarks.contenders import BY_NAME
from benchmarks.hazards.measures import IDLE_CLIENTS, Figures


def seconds(value: float) -> str:
    return f"{1000 * value:.1f} ms" if value < 0.1 else f"{value:.2f} s"


def megabytes(value: float) -> str:
    return f"{value / 1024**2:.1f} MB"


def kilobytes(value: float) -> str:
    return f"{value / 1024:.1f} kB"


def percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def per_second(value: float) -> str:
    return f"{value:.0f}/s"


def count(value: float) -> str:
    return f"{value:.0f}"


def number(figures: Figures, name: str) -> float:
    """The figure, or one that is worse than any when something else happened."""
    value = figures.get(name)
    return value if isinstance(value, int | float) else float("nan")


class Figure(NamedTuple):
    """A figure. ``must`` says what threadbridge must reach, ``reached`` whether it has; without, it is for comparison.

    What is no number is never reached: comparisons with nan are false.
    """

    name: str
    show: Callable[[float], str]
    must: str = ""
    reached: Callable[[Figures], bool] = lambda figures: True

    def text(self, figures: Figures) -> str:
        value = figures.get(self.name, "")
        return value if isinstance(value, str) else self.show(value)


def at_most(name: str, show: Callable[[float], str], limit: float) -> Figure:
    return Figure(name, show, f"≤ {show(limit)}", lambda figures: number(figures, name) <= limit)


def at_least(name: str, show: Callable[[float], str], limit: float) -> Figure:
    return Figure(name, show, f"≥ {show(limit)}", lambda figures: number(figures, name) >= limit)


def like(name: str, before: str) -> Figure:
    """A wait that must not be longer than without the hazard, but for some noise."""
    return Figure(
        name,
        seconds,
        "≤ 1.5 before + 10 ms",
        lambda figures: number(figures, name) <= 1.5 * number(figures, before) + 0.010,
    )


# The figures of each hazard.
FIGURES: dict[str, tuple[Figure, ...]] = {
    "fast-page": (at_most("fast page", seconds, 0.020),),
    "abandoned-queries": (at_most("next query", seconds, 0.150), at_most("still running", count, 0)),
    "stalled-uploads": (like("stalled uploads", "before uploads"), Figure("before uploads", seconds)),
    "stalled-downloads": (like("stalled downloads", "before downloads"), Figure("before downloads", seconds)),
    "slow-reader": (at_most("stream's memory", megabytes, 24 * 1024**2), at_most("first byte", seconds, 0.010)),
    "large-upload": (at_most("upload's memory", megabytes, 8 * 1024**2),),
    "stop": (
        at_least("answered", count, 20),
        Figure("exit status", count, "0", lambda figures: figures.get("exit status") == 0),
        Figure("port", count, "free", lambda figures: figures.get("port") == "free"),
    ),
    "idle-connections": (
        at_least("held", count, IDLE_CLIENTS),
        like("beside them", "before them"),
        Figure("before them", seconds),
        at_most("memory each", kilobytes, 12 * 1024),
    ),
    "overload": (
        at_least("of capacity", percent, 0.95),
        Figure("capacity", per_second),
        at_most("refusal", seconds, 0.020),
    ),
    "guard": (at_least("guarded", percent, 0.95),),
}


def table(results: Mapping[str, Figures]) -> str:
    """All figures in the form of Markdown, a row for each, a column for each server."""
    rows = [["", *(BY_NAME[server].title for server in results), "must"]]
    for figure in (figure for figures in FIGURES.values() for figure in figures):
        if any(figure.name in figures for figures in results.values()):
            rows.append([figure.name, *(figure.text(figures) for figures in results.values()), figure.must])
    return report.table(rows)
