"""threadbridge beside other servers: requests per second, latency, memory, and what becomes of them under hazards.

``python -m benchmarks.compare`` measures all; ``--only hello,select --peers granian,gthread --rounds 3 --quick`` a part
in a minute. It prints a report and writes ``compare.md``, ``compare.json``, ``compare.svg`` and ``hazards.json`` under
``var/benchmarks``, or with ``--publish`` under ``benchmarks/results``, and then ``docs/compared.svg`` too. The exit
status is 1 when threadbridge has missed a figure that it must reach under the hazards.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks import chart, wrk
from benchmarks.contenders import BOUND, BY_NAME, CONTENDERS, ON_REQUEST, THREADBRIDGE, Contender
from benchmarks.database import fill, with_url
from benchmarks.environment import prepare
from benchmarks.hazards.figures import table
from benchmarks.report import as_json, facts, markdown
from benchmarks.rounds import MEMORY_STARTS, Bench, Series
from benchmarks.subject import CannotStart, Footprint
from benchmarks.workloads import WORKLOADS, Workload
from tests.support.processes import ROOT, private_mariadb

MEMORY = "memory"
HAZARDS = "hazards"
REPORT = "compare.md"
PARTS = [*WORKLOADS, MEMORY, HAZARDS]
REQUESTED = [contender.name for contender in ON_REQUEST]
PEERS = [contender.name for contender in (*CONTENDERS, *BOUND) if contender is not THREADBRIDGE]
PICTURE = ROOT / "docs" / "compared.svg"
# Seconds, to know beforehand how long it takes: for a server's start with its warming up, for a measurement beside the
# load itself, for the hazards of threadbridge and for those of another server.
START = 1.8
MEASUREMENT = 0.2
OWN_HAZARDS = 80
HAZARDS_EACH = 35


def main() -> int:
    options = parsed()
    wrk.require()
    contenders: list[Contender] = options.contenders
    workloads = {name: workload for name, workload in WORKLOADS.items() if name in options.only}
    if options.quick:
        workloads = {name: workload._replace(seconds=1) for name, workload in workloads.items()}
    load_before = os.getloadavg()[0]
    if load_before > 0.5:
        print(f"The machine is not idle (load {load_before:.2f}): the figures will be worse than they could be")
    environment, cannot = prepare(contenders)
    print(f"It takes about {estimate(options, list(workloads.values())) / 60:.1f} min", flush=True)
    began = time.monotonic()

    results = {
        name: {each.name: Series() for each in contenders if workload.with_bound or not each.is_bound}
        for name, workload in workloads.items()
    }
    memory: dict[str, list[list[Footprint]]] = {}
    with private_mariadb() as variables:
        fill(variables)
        bench = Bench(environment, with_url(variables), cannot, contenders)
        if MEMORY in options.only:
            memory = measure_memory(bench, min(options.rounds, MEMORY_STARTS))
        for number in range(options.rounds if workloads else 0):
            print(f"Round {number + 1} of {options.rounds}, after {time.monotonic() - began:.0f} s", flush=True)
            bench.round(number, workloads, results)
    directory: Path = options.directory
    directory.mkdir(parents=True, exist_ok=True)
    if results or memory:
        about = {
            **facts(environment),
            "load_before": round(load_before, 2),
            "rounds": options.rounds,
            "seconds": {name: workload.seconds for name, workload in workloads.items()},
        }
        text = markdown(results, memory, about)
        print(f"\n{text}")
        (directory / REPORT).write_text(text, encoding="utf-8")
        (directory / "compare.json").write_text(as_json(results, memory, about), encoding="utf-8")
        (directory / "compare.svg").write_text(chart.picture(results, memory), encoding="utf-8")
        if options.publish:
            main_results = {name: results[name] for name in chart.MAIN if name in results}
            PICTURE.write_text(chart.picture(main_results, memory), encoding="utf-8")
    status = 0
    if HAZARDS in options.only:
        status, figures = measure_hazards([THREADBRIDGE] if options.quick else unbound(contenders), directory)
        if results or memory:
            with (directory / REPORT).open("a", encoding="utf-8") as report:
                report.write(f"\n## hazards: slow queries, bad clients, stops, overload\n\n{figures}\n")
    print(f"In {time.monotonic() - began:.0f} s; the results are in {directory}")
    return status


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", help=f"what to measure, by commas: {', '.join(PARTS)}")
    parser.add_argument(
        "--peers", help=f"which other servers, by commas: {', '.join(PEERS)}; or {', '.join(REQUESTED)}"
    )
    parser.add_argument("--rounds", type=int, default=7, help="how often (default %(default)s)")
    parser.add_argument("--quick", action="store_true", help="each load for one second, hazards of threadbridge alone")
    parser.add_argument("--publish", action="store_true", help="replace the results that the documentation shows")
    parser.add_argument("--directory", type=Path, help="where to write the results")
    options = parser.parse_args()
    options.only = chosen(parser, options.only, PARTS, PARTS)
    peers = chosen(parser, options.peers, [*PEERS, *REQUESTED], PEERS)
    options.contenders = [
        contender for contender in BY_NAME.values() if contender is THREADBRIDGE or contender.name in peers
    ]
    if options.rounds < 1:
        parser.error("--rounds: expected a number from 1")
    if options.directory is None:
        options.directory = ROOT / "benchmarks" / "results" if options.publish else ROOT / "var" / "benchmarks"
    return options


def chosen(
    parser: argparse.ArgumentParser, names: str | None, known: Sequence[str], default: Sequence[str]
) -> Sequence[str]:
    """The names given, or the default; a mistake is told with those that there are."""
    given = names.split(",") if names else default
    for name in given:
        if name not in known:
            parser.error(f"there is no {name!r}; there are {', '.join(known)}")
    return given


def estimate(options: argparse.Namespace, workloads: Sequence[Workload]) -> float:
    """How many seconds it will take."""
    servers = len(unbound(options.contenders))
    bound = len(options.contenders) - servers
    seconds = sum((workload.seconds + MEASUREMENT) * (servers + bound * workload.with_bound) for workload in workloads)
    setups = {workload.setup for workload in workloads}
    with_bound = {workload.setup for workload in workloads if workload.with_bound}
    total: float = options.rounds * (seconds + START * (len(setups) * servers + len(with_bound) * bound))
    if MEMORY in options.only:
        total += min(options.rounds, MEMORY_STARTS) * servers * START
    if HAZARDS in options.only:
        total += OWN_HAZARDS + (0 if options.quick else HAZARDS_EACH * (servers - 1))
    return total


def unbound(contenders: Sequence[Contender]) -> list[Contender]:
    return [contender for contender in contenders if not contender.is_bound]


def measure_memory(bench: Bench, starts: int) -> dict[str, list[list[Footprint]]]:
    memory: dict[str, list[list[Footprint]]] = {contender.name: [] for contender in unbound(bench.contenders)}
    print(f"Memory, {starts} starts of each", flush=True)
    for _ in range(starts):
        for contender in unbound(bench.contenders):
            try:
                memory[contender.name].append(bench.memory(contender))
            except CannotStart as error:
                print(f"  {contender.name} does not start: {error!s:.500}", flush=True)
    return memory


def measure_hazards(contenders: Sequence[Contender], directory: Path) -> tuple[int, str]:
    """The exit status of the hazards' own command, and a table of the figures."""
    file = directory / "hazards.json"
    file.unlink(missing_ok=True)
    servers = ",".join(contender.name for contender in contenders)
    command = [sys.executable, "-m", "benchmarks.hazards", f"--servers={servers}", f"--json={file}"]
    status = subprocess.run(command, check=False).returncode
    return status, table(json.loads(file.read_text(encoding="utf-8"))["servers"])


if __name__ == "__main__":
    sys.exit(main())
