"""One process on all processors: free-threaded Python beside the same Python with its lock, and beside other servers.

``scripts/free_threaded.sh`` and ``scripts/free_threaded.sh --with-lock`` build the two first. Then ``python -m
benchmarks.free_threading`` measures an application that computes for 5 ms of processor time in each request, hello, and
an indexed SELECT. The load generator runs on the same processors; how much of them it takes is told. With
``--publish``, the result goes to ``benchmarks/results/free_threading.md``.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from benchmarks import THREADS, wrk
from benchmarks.clients import at_once
from benchmarks.contenders import BY_NAME, Contender
from benchmarks.database import fill
from benchmarks.environment import CONSTRAINTS, REQUIREMENTS, machine
from benchmarks.report import shown_ratio, spread, table
from benchmarks.subject import CannotStart, Subject, running
from benchmarks.workloads import HELLO, SELECT
from benchmarks.wrk import Load
from tests.support.processes import ROOT, private_mariadb

FREE = ROOT / "build" / "free-threaded" / "venv"
LOCKED = ROOT / "build" / "with-lock" / "venv"
RESULT = ROOT / "benchmarks" / "results" / "free_threading.md"
# Seconds of processor time that a request computes for, and the steps by which that is found out.
COMPUTES = 0.005
TRIAL_STEPS = 5000
SECONDS = 2
# Prints the versions of packages; fails if one is missing.
_VERSIONS = "import sys; from importlib.metadata import version; print(*(f'{p} {version(p)}' for p in sys.argv[1:]))"
_DESCRIBES = """
import threadbridge.loop.bridge
from threadbridge.common.interpreter import describe
from threadbridge.compiled import is_compiled

print(f"{describe()} (threadbridge is {'' if is_compiled() else 'not '}compiled)")
"""


class Variant(NamedTuple):
    """A server on one of the two interpreters."""

    title: str
    environment: Path
    contender: Contender
    variables: Mapping[str, str] = {}


# The first is what the others are compared with.
VARIANTS = (
    Variant("threadbridge, with the lock", LOCKED, BY_NAME["threadbridge"]),
    Variant("threadbridge, free-threaded", FREE, BY_NAME["threadbridge"]),
    # How much of the difference is the lock's, and how much the interpreter's that can do without.
    Variant("threadbridge, free-threaded, PYTHON_GIL=1", FREE, BY_NAME["threadbridge"], {"PYTHON_GIL": "1"}),
    Variant("threadbridge, with the lock, 2 processes", LOCKED, BY_NAME["two-processes"]),
    # Its parser in C cannot be built there.
    Variant("gunicorn gthread, free-threaded", FREE, BY_NAME["gthread"]._replace(packages=("gunicorn",))),
    Variant("granian, free-threaded", FREE, BY_NAME["granian"]),
)


@dataclass
class Figures:
    """A server's figures under one load, one of each round: requests a second, microseconds of processor time a request
    in the server and in the load generator, how many processors all others used, MariaDB included, and the longest 1 %
    in milliseconds."""

    rates: list[float] = field(default_factory=list)
    own: list[float] = field(default_factory=list)
    generator: list[float] = field(default_factory=list)
    others: list[float] = field(default_factory=list)
    p99: list[float] = field(default_factory=list)


def main() -> int:
    options = parsed()
    wrk.require()
    variants = [variant for variant in VARIANTS if is_installed(variant)]
    with private_mariadb() as variables:
        fill(variables)
        steps = steps_of_one_request(variables)
        loads = {
            f"{1000 * COMPUTES:g} ms of Python, 16 connections": Load(f"/compute?steps={steps}", 16),
            "hello, 64 connections": Load(HELLO, 64),
            "an indexed SELECT, 32 connections": Load(SELECT, 32),
        }
        results: dict[str, dict[str, Figures]] = {
            load: {variant.title: Figures() for variant in variants} for load in loads
        }
        for number in range(options.rounds):
            # Another order in each round, but the same whenever it is measured.
            for variant in random.Random(number).sample(variants, len(variants)):
                with running(variant.contender, variant.environment, {**variables, **variant.variables}) as subject:
                    at_once(subject.port, "/query?seconds=0.05", THREADS)
                    wrk.run(subject.port, Load(HELLO, 64), 1)
                    for name, load in loads.items():
                        figures = results[name][variant.title]
                        measure(subject, load, figures)
                        print(f"round {number + 1}: {variant.title}: {name}: {figures.rates[-1]:.0f}", flush=True)
    text = report(results, options.rounds)
    print(f"\n{text}")
    if options.publish:
        RESULT.write_text(text, encoding="utf-8")
    return 0


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.free_threading",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=5, help="how often (default %(default)s)")
    parser.add_argument("--publish", action="store_true", help="replace the result that the documentation shows")
    return parser.parse_args()


def is_installed(variant: Variant) -> bool:
    """Whether the server is there, if need be after installing it."""
    python = python_of(variant.environment)
    if not python.exists():
        sys.exit(f"{variant.environment} is missing: scripts/free_threaded.sh and its option --with-lock make both")
    packages = variant.contender.packages
    versions = subprocess.run([python, "-c", _VERSIONS, *packages], check=False, capture_output=True, text=True)
    if not versions.returncode:
        print(f"{variant.title}: {versions.stdout.strip()}", flush=True)
        return True
    pip: list[str | Path] = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    files: list[str | Path] = ["--constraint", CONSTRAINTS, "--constraint", REQUIREMENTS]
    installed = subprocess.run([*pip, *files, *packages], check=False)
    if installed.returncode:
        print(f"left out, as it cannot be installed: {variant.title}", flush=True)
    return installed.returncode == 0


def steps_of_one_request(variables: Mapping[str, str]) -> int:
    """How much of the computation takes `COMPUTES`, by the interpreter with the lock."""
    with running(VARIANTS[0].contender, LOCKED, variables) as subject:
        load = Load(f"/compute?steps={TRIAL_STEPS}", 1)
        wrk.run(subject.port, load, 1)
        figures = Figures()
        measure(subject, load, figures)
    return round(TRIAL_STEPS * COMPUTES * 1e6 / figures.own[0])


def measure(subject: Subject, load: Load, figures: Figures) -> None:
    """Put the load on the server, and add what came of it."""
    began, own, generator, machine_wide = time.monotonic(), subject.processor_seconds(), of_children(), of_all()
    measured = wrk.run(subject.port, load, SECONDS)
    if measured.errors:
        raise CannotStart(f"errors under load: {measured.errors}")
    own, generator = subject.processor_seconds() - own, of_children() - generator
    figures.rates.append(measured.rate)
    figures.own.append(own * 1e6 / measured.requests)
    figures.generator.append(generator * 1e6 / measured.requests)
    figures.others.append((of_all() - machine_wide - own - generator) / (time.monotonic() - began))
    figures.p99.append(measured.p99)


def of_children() -> float:
    """The processor time of the load generators that have ended; the servers of a round end later."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def of_all() -> float:
    """The processor time that the whole machine has used, and that a hypervisor has kept from it."""
    ticks = [int(each) for each in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    # Without the time that it was idle or waited for disks.
    return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")


def report(results: Mapping[str, Mapping[str, Figures]], rounds: int) -> str:
    facts = machine()
    versions = {environment: output([python_of(environment), "-c", _DESCRIBES]) for environment in (LOCKED, FREE)}
    peers = [
        output([python_of(each.environment), "-c", _VERSIONS, *each.contender.packages])
        for each in VARIANTS
        if any(each.title in by_variant for by_variant in results.values()) and each.contender.packages
    ]
    parts = [
        "# Free-threaded Python beside the same Python with its lock",
        f"{facts['processor']}, {facts['processors']} processors, which the load generator and MariaDB share; "
        f"{versions[LOCKED]} and {versions[FREE]}, built in the same way. One process with {THREADS} threads unless it "
        f"says otherwise. Medians of {rounds} rounds; ratios are within a round, with the lowest and the highest.",
    ]
    for load, by_variant in results.items():
        parts += [f"## {load}", table([HEAD, *rows(by_variant)])]
    if peers:
        parts.append(f"Versions: {', '.join(peers)}.")
    return "\n\n".join(parts) + "\n"


HEAD = ("server", "requests/s", "to the first", "processor µs", "of the generator, µs", "others, processors", "99 % ms")


def rows(by_variant: Mapping[str, Figures]) -> Sequence[Sequence[str]]:
    [first, *_] = by_variant.values()
    found = []
    for title, figures in by_variant.items():
        ratio = spread([one / other for one, other in zip(figures.rates, first.rates, strict=True)])
        found.append(
            (
                title,
                f"{statistics.median(figures.rates):.0f}",
                "" if figures is first else shown_ratio(ratio),
                f"{statistics.median(figures.own):.0f}",
                f"{statistics.median(figures.generator):.0f}",
                f"{statistics.median(figures.others):.2f}",
                f"{statistics.median(figures.p99):.1f}",
            )
        )
    return found


def python_of(environment: Path) -> Path:
    return environment / "bin" / "python"


def output(command: Sequence[str | Path]) -> str:
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
