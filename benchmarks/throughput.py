"""Requests per second of a route that needs no database: what the server itself costs.

``python -m benchmarks.throughput`` drives the servers in turn with wrk, round after round, so that a disturbance of the
machine meets all of them; it prints the medians. It takes about a minute.
"""

from __future__ import annotations

import argparse
import re
import shutil
import statistics
import subprocess
import sys
from contextlib import ExitStack

from benchmarks.servers import SERVERS, TITLES, command
from tests.processes import Frontend

APPLICATION = "benchmarks.hello:app"
BASELINE = "executor"
THREADS = 10
CONNECTIONS = 64
WARM_UP = 1


def requests_per_second(url: str, seconds: int) -> float:
    """Let wrk ask for the URL. Raises RuntimeError when not every answer is a good one."""
    finished = subprocess.run(
        ["wrk", "--threads=1", f"--connections={CONNECTIONS}", f"--duration={seconds}s", "--timeout=10s", url],
        check=True,
        capture_output=True,
        text=True,
    )
    found = re.search(r"^Requests/sec: +([0-9.]+)$", finished.stdout, re.MULTILINE)
    if found is None or "Non-2xx" in finished.stdout or "Socket errors" in finished.stdout:
        raise RuntimeError(f"{url} did not answer every request with success:\n{finished.stdout}")
    return float(found[1])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.throughput", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="how often each server is measured (default %(default)s)")
    parser.add_argument("--seconds", type=int, default=4, help="how long each time (default %(default)s)")
    options = parser.parse_args()
    if shutil.which("wrk") is None:
        sys.exit("wrk is not installed; on Debian: apt-get install wrk")

    print(f"Requests per second, {CONNECTIONS} connections, {THREADS} threads", flush=True)
    results: dict[str, list[float]] = {server: [] for server in SERVERS}
    with ExitStack() as stack:
        urls = {server: stack.enter_context(Frontend(command(server, APPLICATION, THREADS))).url for server in SERVERS}
        for url in urls.values():
            requests_per_second(url, WARM_UP)
        for number in range(options.rounds):
            print(f"round {number + 1} of {options.rounds}:", end="", flush=True)
            for server, url in urls.items():
                results[server].append(requests_per_second(url, options.seconds))
                print(f"  {server} {results[server][-1]:.0f}", end="", flush=True)
            print(flush=True)

    # Within a round the machine is most alike, so the ratio is taken there; its range shows how far to trust it.
    print(f"\n{'median of the rounds':30} requests/s   / {TITLES[BASELINE]}")
    for server, rates in results.items():
        ratios = [rate / base for rate, base in zip(rates, results[BASELINE], strict=True)]
        print(
            f"{TITLES[server]:30} {statistics.median(rates):10.0f}   {statistics.median(ratios):.2f}"
            f" ({min(ratios):.2f} to {max(ratios):.2f})"
        )


if __name__ == "__main__":
    main()
