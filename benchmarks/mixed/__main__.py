"""Short queries among long ones, on threadbridge and on other servers.

``python -m benchmarks.mixed`` measures everything, in about an hour; ``--quick`` the main cases, in three minutes. It
prints a report and writes ``mixed.md``, ``mixed.json`` and ``mixed.svg`` to ``var/benchmarks``, or with ``--publish``
to ``benchmarks/results``, and then the picture and the main figures to ``docs`` too. The exit status is 1 if
threadbridge has missed a figure that it must reach.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from benchmarks.contenders import BY_NAME, THREADBRIDGE, Contender, Setup
from benchmarks.environment import prepare
from benchmarks.mixed import application, long_clients, reports
from benchmarks.mixed.picture import picture
from benchmarks.mixed.report import MAIN_LOAD, Results, as_json, markdown, missed, summary
from benchmarks.report import facts
from benchmarks.subject import CannotStart, running
from tests.support.processes import ROOT, private_mariadb

FAIR = THREADBRIDGE._replace(
    name="fair", title="threadbridge, schedule=fair", command=(*THREADBRIDGE.command, "--schedule=fair")
)
# Ten threads that run what comes: on this one the capacity is measured.
PLAIN = BY_NAME["executor"]
SERVERS = {each.name: each for each in (THREADBRIDGE, FAIR, BY_NAME["granian"], BY_NAME["gthread"], PLAIN)}
CHANGE = "change"
CASES = [*long_clients.STYLES, CHANGE, *reports.MIXES]
QUICK_CASES = ["path", CHANGE, "waiting"]
SECONDS, QUICK_SECONDS = 60.0, 9.0
PICTURE = ROOT / "docs" / "mixed.svg"
# The documentation of the figures, with a table between two comments.
PAGE = ROOT / "docs" / "benchmarks.md"
TABLE = re.compile(r"(?<=<!-- mixed -->\n).*?(?=<!-- end of mixed -->)", re.DOTALL)


def main() -> int:
    options = parsed()
    load_before = os.getloadavg()[0]
    if load_before > 0.5:
        print(f"The machine is not idle (load {load_before:.2f}): the figures will be worse than they could be")
    servers: list[Contender] = options.servers
    environment, cannot = prepare(servers)
    began = time.monotonic()
    results = Results()
    with private_mariadb() as variables:
        if any(case in reports.MIXES for case in options.cases):
            subprocess.run(
                [sys.executable, "-m", "myapplication.sampledata"],
                check=True,
                cwd=ROOT,
                env={**os.environ, **variables},
                stdout=subprocess.DEVNULL,
            )
        servers = [server for server in servers if server.name not in cannot]
        bench = Bench(environment, {**variables, "MYAPPLICATION_DIAGNOSTICS": "1"}, servers, options)
        for case in options.cases:
            print(f"{case}, after {time.monotonic() - began:.0f} s", flush=True)
            bench.measure(case, results)
    about = {
        **facts(environment),
        "load_before": round(load_before, 2),
        "seconds": options.seconds,
        "long": options.long,
    }
    titles = {server.name: server.title for server in SERVERS.values()}
    text = markdown(results, titles, about)
    print(f"\n{text}")
    directory: Path = options.directory
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "mixed.md").write_text(text, encoding="utf-8")
    (directory / "mixed.json").write_text(as_json(results, about), encoding="utf-8")
    (directory / "mixed.svg").write_text(picture(results, titles, options.long), encoding="utf-8")
    if options.publish:
        PICTURE.write_text(picture(results, titles, options.long), encoding="utf-8")
        table = f"\n{summary(results, titles, options.long)}\n\n"
        PAGE.write_text(TABLE.sub(lambda _: table, PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"In {time.monotonic() - began:.0f} s; the results are in {directory}")
    unreached = missed(results, THREADBRIDGE.name, options.long)
    print("\n".join(["threadbridge has missed:", *unreached]) if unreached else "threadbridge has reached all it must")
    return 1 if unreached else 0


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.mixed", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", nargs="+", metavar="SERVER", choices=SERVERS, default=list(SERVERS), help=", ".join(SERVERS)
    )
    parser.add_argument("--cases", nargs="+", metavar="CASE", choices=CASES, help=", ".join(CASES))
    parser.add_argument("--seconds", type=float, help=f"of each measurement (default {SECONDS:g})")
    parser.add_argument(
        "--long", type=float, default=3.0, help="seconds that long queries take in the cases other than reports"
    )
    parser.add_argument("--quick", action="store_true", help=f"{', '.join(QUICK_CASES)}, {QUICK_SECONDS:g} s each")
    parser.add_argument("--publish", action="store_true", help="replace the results that the documentation shows")
    parser.add_argument("--directory", type=Path, help="where to write the results")
    options = parser.parse_args()
    options.servers = [server for name, server in SERVERS.items() if name in options.only]
    options.cases = options.cases or (QUICK_CASES if options.quick else CASES)
    options.seconds = options.seconds or (QUICK_SECONDS if options.quick else SECONDS)
    options.loads = [MAIN_LOAD] if options.quick else reports.LOADS
    if options.directory is None:
        options.directory = ROOT / "benchmarks" / "results" if options.publish else ROOT / "var" / "benchmarks"
    return options


class Bench(NamedTuple):
    """Where the servers run, and what is measured."""

    environment: Path
    variables: Mapping[str, str]
    servers: Sequence[Contender]
    options: argparse.Namespace

    def measure(self, case: str, results: Results) -> None:
        if case in reports.MIXES:
            self._measure_mix(case, results)
            return
        application.fill(self.variables, self.options.long)
        with ExitStack() as stack:
            ports = {server.name: self._start(server, stack) for server in self.servers}
            if case == CHANGE:
                results.change = long_clients.measure_change(
                    ports, self.variables, self.options.seconds, self.options.long
                )
            else:
                results.styles[case] = long_clients.measure_style(
                    long_clients.STYLES[case], ports, self.options.seconds, self.options.long
                )

    def _measure_mix(self, case: str, results: Results) -> None:
        mix = reports.MIXES[case]
        with ExitStack() as stack:
            port = self._start(PLAIN, stack)
            costs = results.costs[case] = reports.measure_costs(port, mix.reports)
            capacity = results.capacity[case] = reports.measure_capacity(port, mix, costs, self.options.seconds)
        print(f"  capacity {capacity:.1f} requests/s", flush=True)
        for load in self.options.loads:
            of_servers = results.loads.setdefault(case, {}).setdefault(load, {})
            for server in self.servers:
                with ExitStack() as stack:
                    port = self._start(server, stack)
                    served = reports.measure_load(port, mix, costs, capacity, load, self.options.seconds)
                of_servers[server.name] = served
                print(f"  {load:g} {server.name}: short {served.short}", flush=True)

    def _start(self, server: Contender, stack: ExitStack) -> int:
        """Its port."""
        try:
            return stack.enter_context(
                running(server, self.environment, self.variables, setup=Setup(application.__name__))
            ).port
        except CannotStart as error:
            sys.exit(f"{server.name} does not start: {error}")


if __name__ == "__main__":
    sys.exit(main())
