"""What it costs that the pool is guarded and requests have lanes: the same short query with and without."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from benchmarks import THREADS
from benchmarks.contenders import THREADBRIDGE
from benchmarks.database import fill
from benchmarks.hazards.measures import Figures
from benchmarks.subject import Subject, running
from benchmarks.wrk import Load, run

SELECT = Load("/row?id=500", connections=64)
ROUNDS = 5
SECONDS = 3
UNGUARDED = THREADBRIDGE._replace(command=(*THREADBRIDGE.command, "--pool=none", f"--threads={THREADS}"))


def guard(environment: Path, variables: Mapping[str, str]) -> Figures:
    """The throughput of an indexed SELECT with guard and lanes, as a part of that without; round by round by wrk."""
    fill(variables)
    rates: list[list[float]] = [[], []]
    with ExitStack() as stack:
        subjects = [
            stack.enter_context(running(contender, environment, variables)) for contender in (THREADBRIDGE, UNGUARDED)
        ]
        for subject in subjects:
            rate(subject, 1)
        for _ in range(ROUNDS):
            for subject, measured in zip(subjects, rates, strict=True):
                measured.append(rate(subject, SECONDS))
    return {"guarded": statistics.median(rates[0]) / statistics.median(rates[1])}


def rate(subject: Subject, seconds: int) -> float:
    measured = run(subject.port, SELECT, seconds)
    if measured.errors:
        raise RuntimeError(f"not every request was answered with success: {measured.errors}")
    return measured.rate
