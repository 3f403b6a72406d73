"""Servers side by side under the hazards of real life: slow queries, clients that leave or stall, stops, overload.

``python -m benchmarks.hazards`` measures threadbridge and nine other servers with the same application on a private
MariaDB, which takes about six minutes; ``--quick`` measures threadbridge alone, in about a minute. Each server is
started anew for each hazard. The exit status is 1 when threadbridge has missed a figure that it must reach.
"""

from __future__ import annotations

import argparse
import http.client
import json
import math
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

from benchmarks.clients import Refused
from benchmarks.contenders import CONTENDERS, THREADBRIDGE, Contender
from benchmarks.environment import prepare
from benchmarks.hazards import measures
from benchmarks.hazards.figures import FIGURES, table
from benchmarks.hazards.guard import guard
from benchmarks.hazards.measures import Figures
from benchmarks.hazards.overload import overload
from benchmarks.report import facts
from benchmarks.subject import CannotStart, Subject, running
from tests.support.processes import ROOT, private_mariadb


class Hazard(NamedTuple):
    """A measurement. Those in which servers mostly wait are made of several at a time, but of threadbridge alone."""

    measure: Callable[[Subject], Figures]
    extra: Callable[[Contender], tuple[str, ...]] = lambda contender: ()
    at_a_time: int = 1


HAZARDS = {
    "fast-page": Hazard(measures.fast_page, at_a_time=3),
    "abandoned-queries": Hazard(measures.abandoned_queries, at_a_time=3),
    "stalled-uploads": Hazard(measures.stalled_uploads, at_a_time=3),
    "stalled-downloads": Hazard(measures.stalled_downloads, at_a_time=3),
    "slow-reader": Hazard(measures.slow_reader),
    "large-upload": Hazard(measures.large_upload),
    "stop": Hazard(measures.stop, at_a_time=3),
    "idle-connections": Hazard(measures.idle_connections, lambda contender: contender.patient),
    "overload": Hazard(overload, lambda contender: contender.refusing),
}
# Of threadbridge alone.
GUARD = "guard"
SERVERS = [contender.name for contender in CONTENDERS]
RESULTS = ROOT / "benchmarks" / "results" / "hazards.json"


def main() -> int:
    options = parsed()
    began = time.monotonic()
    environment, cannot = prepare(options.servers)
    lift_limits()
    results: dict[str, Figures] = {contender.name: {} for contender in options.servers}
    with private_mariadb() as variables:
        bench = Bench(environment, variables, cannot)
        for name in options.hazards:
            print(f"\n{name}: {(guard if name == GUARD else HAZARDS[name].measure).__doc__}", flush=True)
            for contender, figures in bench.all_figures(name, options.servers):
                results[contender.name] |= figures
                print(f"  {contender.name:13}  {shown(name, contender, figures)}", flush=True)
    print(f"\n{table(results)}")
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(as_json(results, environment), encoding="utf-8")
    print(f"\nIn {time.monotonic() - began:.0f} s; the figures are in {options.json}")
    if THREADBRIDGE not in options.servers:
        return 0
    reached = results[THREADBRIDGE.name]
    missed = [
        f"{figure.name}: {figure.text(reached)}, must be {figure.must}"
        for hazard in options.hazards
        for figure in FIGURES[hazard]
        if not figure.reached(reached)
    ]
    print("\n".join(["threadbridge has missed:", *missed]) if missed else "threadbridge has reached all it must")
    return 1 if missed else 0


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hazards", description=__doc__)
    parser.add_argument("--servers", help=f"which of them, by commas: {', '.join(SERVERS)}")
    parser.add_argument("--hazards", help=f"which of them, by commas: {', '.join([*HAZARDS, GUARD])}")
    parser.add_argument("--quick", action="store_true", help="threadbridge alone")
    parser.add_argument("--json", type=Path, default=RESULTS, help="the file to write (default %(default)s)")
    options = parser.parse_args()
    servers = options.servers.split(",") if options.servers else [THREADBRIDGE.name] if options.quick else SERVERS
    hazards = options.hazards.split(",") if options.hazards else [*HAZARDS, GUARD]
    for name in {*servers} - {*SERVERS}:
        parser.error(f"there is no server {name!r}; there are {', '.join(SERVERS)}")
    for name in {*hazards} - {*HAZARDS, GUARD}:
        parser.error(f"there is no hazard {name!r}; there are {', '.join([*HAZARDS, GUARD])}")
    options.servers = [contender for contender in CONTENDERS if contender.name in servers]
    options.hazards = [hazard for hazard in [*HAZARDS, GUARD] if hazard in hazards]
    if GUARD in options.hazards:
        if THREADBRIDGE not in options.servers:
            options.hazards.remove(GUARD)
        elif shutil.which("wrk") is None:
            parser.error("wrk is not installed; on Debian: apt-get install wrk")
    return options


def lift_limits() -> None:
    """Let this process and the servers have as many open files as the system allows."""
    _, highest = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest, highest))


class Bench(NamedTuple):
    """Where the servers run; ``cannot`` says of those that are missing why."""

    environment: Path
    variables: Mapping[str, str]
    cannot: Mapping[str, str]

    def all_figures(self, name: str, contenders: Sequence[Contender]) -> Iterator[tuple[Contender, Figures]]:
        """The hazard's figures of each server."""
        others = list(contenders)
        if THREADBRIDGE in others:
            others.remove(THREADBRIDGE)
            yield THREADBRIDGE, self.middle_figures(name)
        if name != GUARD:
            with ThreadPoolExecutor(HAZARDS[name].at_a_time) as executor:
                yield from zip(others, executor.map(partial(self.figures, name), others), strict=True)

    def middle_figures(self, name: str) -> Figures:
        """Those of threadbridge. What it misses may be the machine's fault: it is measured twice more then, and the
        middle one of each figure counts."""
        figures = self.figures(name, THREADBRIDGE)
        if all(figure.reached(figures) for figure in FIGURES[name]):
            return figures
        print(f"  once missed: {shown(name, THREADBRIDGE, figures)}; measured twice more", flush=True)
        three = [figures, self.figures(name, THREADBRIDGE), self.figures(name, THREADBRIDGE)]
        return {key: sorted((one[key] for one in three), key=worse)[1] for key in figures}

    def figures(self, name: str, contender: Contender) -> Figures:
        """The hazard's figures of one server, or what happened in their place."""
        try:
            if contender.name in self.cannot:
                raise CannotStart(f"it cannot be installed: {self.cannot[contender.name][-400:]}")
            if name == GUARD:
                return guard(self.environment, self.variables)
            hazard = HAZARDS[name]
            with running(contender, self.environment, self.variables, hazard.extra(contender)) as subject:
                return hazard.measure(subject)
        except CannotStart as error:
            print(f"  {contender.name} does not start: {error!s:.500}", flush=True)
            happened = "not started"
        except TimeoutError:
            happened = measures.TOO_LONG
        except (OSError, RuntimeError, http.client.HTTPException, Refused) as error:
            print(f"  {contender.name} failed: {error!r}", flush=True)
            happened = type(error).__name__
        return dict.fromkeys((figure.name for figure in FIGURES[name]), happened)


def worse(value: float | str) -> float:
    return math.inf if isinstance(value, str) else value


def shown(hazard: str, contender: Contender, figures: Figures) -> str:
    parts = []
    for figure in FIGURES[hazard]:
        part = f"{figure.name} {figure.text(figures)}"
        if contender is THREADBRIDGE and figure.must:
            part += f" ({figure.must}: {'reached' if figure.reached(figures) else 'MISSED'})"
        parts.append(part)
    return ", ".join(parts)


def as_json(results: Mapping[str, Figures], environment: Path) -> str:
    whole = {**facts(environment), "units": "seconds and bytes", "servers": results}
    return json.dumps(whole, indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    sys.exit(main())
