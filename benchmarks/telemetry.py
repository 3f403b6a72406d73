"""What logs, metrics, traces and the operators' page cost: processor time for a request of hello, with and without.

``python -m benchmarks.telemetry`` runs servers beside each other: one that records nothing, one that writes its logs,
and one whose page is open besides; one without logs, and one that sends the traces of 1 % and its metrics over OTLP
besides. In each round all get the same load in turn, so that a disturbance of the machine meets all of them.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median

from benchmarks import wrk
from benchmarks.subject import Subject
from tests.support.otlp_receiver import Receiver
from tests.support.processes import Frontend, free_port
from tests.support.records import record
from threadbridge.cli.main import main as serve
from threadbridge.telemetry.telemetry import Telemetry

WITHOUT, LOGS, PAGE, SILENT, TRACES = "without", "logs", "logs and open page", "no logs", "no logs, traces of 1 %"
# With which each is compared.
BASES = {TRACES: SILENT}
SAMPLING = {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.01"}
SERVE_WITHOUT = "serve-without"
APPLICATION = ("benchmarks.application:app", "--threads=10", "--port={port}")
HELLO = wrk.Load("/", 32)


def main() -> int:
    options = parsed()
    wrk.require()
    with tempfile.TemporaryDirectory() as directory, ExitStack() as stack:
        admin_port = free_port()
        log = f"--log_file_prefix={directory}/app"
        silent = ("--access_log=false", "--slow_log=0", "--logging=warning")
        commands = {
            WITHOUT: ("-m", "benchmarks.telemetry", SERVE_WITHOUT, *APPLICATION, *silent),
            LOGS: ("-m", "threadbridge", *APPLICATION, f"{log}.1.log"),
            SILENT: ("-m", "threadbridge", *APPLICATION, *silent),
            TRACES: ("-m", "threadbridge", *APPLICATION, *silent, "--otel"),
            PAGE: ("-m", "threadbridge", *APPLICATION, f"{log}.2.log", f"--admin_port={admin_port}"),
        }
        collector = {**SAMPLING, "OTEL_EXPORTER_OTLP_ENDPOINT": stack.enter_context(Receiver()).url}
        with on_one_processor():
            servers = {
                name: Subject(stack.enter_context(Frontend(command, env=collector)), {})
                for name, command in commands.items()
            }
        page = ["curl", "--silent", "--no-buffer", f"http://127.0.0.1:{admin_port}/events"]
        stack.callback(subprocess.Popen(page, stdout=subprocess.DEVNULL).kill)
        costs: dict[str, list[float]] = {name: [] for name in servers}
        for number in range(options.rounds + 1):
            for name in random.Random(number).sample(list(servers), len(servers)):
                cost = microseconds(servers[name], options.seconds)
                # The first round only warms up.
                if number:
                    costs[name].append(cost)
        written = Path(f"{directory}/app.1.access.log").stat().st_size
        report(costs)
        print(f"The access log has grown to {written / 1e6:.1f} MB.")
    return 0


@contextmanager
def on_one_processor() -> Iterator[None]:
    """Bind what is started here to the same processor: under load each would keep to one, but not to the same."""
    processors = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(processors)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, processors)


def microseconds(server: Subject, seconds: int) -> float:
    """Processor time for a request."""
    before = server.processor_seconds()
    requests = wrk.run(server.port, HELLO, seconds).requests
    return 1e6 * (server.processor_seconds() - before) / requests


def report(costs: Mapping[str, Sequence[float]]) -> None:
    print(f"{'':24} {'us a request':>12} {'ratio':>6}  of each round, to {WITHOUT} or the one in brackets")
    for name, of_rounds in costs.items():
        base = BASES.get(name, WITHOUT)
        ratios = [one / bare for one, bare in zip(of_rounds, costs[base], strict=True)]
        each = " ".join(f"{ratio:.3f}" for ratio in ratios)
        brackets = f" ({base})" if name in BASES else ""
        print(f"{name:24} {median(of_rounds):12.1f} {median(ratios):6.3f}  {each}{brackets}")


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.telemetry", description="What telemetry costs.")
    parser.add_argument("--rounds", type=int, default=7, help="default %(default)s")
    parser.add_argument("--seconds", type=int, default=3, help="of load on each server in a round, default %(default)s")
    return parser.parse_args()


if __name__ == "__main__":
    if sys.argv[1:2] == [SERVE_WITHOUT]:
        del sys.argv[1]
        # What the server would have without this package's telemetry: no record of any request.
        nothing = record()
        Telemetry.finished = lambda self, exchange: nothing  # type: ignore[method-assign]
        sys.exit(serve())
    sys.exit(main())
