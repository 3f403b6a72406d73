"""What slow queries do to others: applications on SQLAlchemy and Django, on threadbridge and on a plain thread pool.

``python -m benchmarks.stacks`` needs about three minutes. It prints a table; the exit status is 1 if threadbridge has
missed a figure that it must reach. No application, and no command line, names a pool.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import NamedTuple

import sqlalchemy

from benchmarks.clients import LIMIT, ask, send
from benchmarks.contenders import BY_NAME, DJANGO, SQLALCHEMY, THREADBRIDGE, Contender, Setup
from benchmarks.database import with_url
from benchmarks.stacks.queries import LONG_SECONDS
from benchmarks.stacks.witness import Witness
from benchmarks.subject import running
from benchmarks.traffic import Traffic
from tests.support.postgresql import private_postgresql
from tests.support.processes import private_mariadb

SERVERS = (THREADBRIDGE, BY_NAME["executor"])

SLOW, LEAVING, LONG_CLIENTS = 20, 40, 30
# Seconds of the third measurement, its beginning in which costs are learned, and the time between short queries.
SECONDS, COLD, INTERVAL = 25.0, 10.0, 0.1
MOST_PAGE, MOST_NEXT, MOST_SHORT = 0.020, 0.150, 0.050


class Case(NamedTuple):
    """An application, and where its database is."""

    title: str
    module: str
    kind: str
    variables: Mapping[str, str]


class Measured(NamedTuple):
    """Seconds, and the number of queries that still ran `MOST_NEXT` seconds after their clients had left.

    An answer that takes longer than `LIMIT` is given up.

    :param page: the longest wait for a page without a query among slow queries.
    :param next: the first query after the clients have left.
    :param short: of nearly all (99 %) short queries among long ones.
    """

    page: float
    next: float
    left: int
    short: float


def cases(mariadb: Mapping[str, str], postgresql: Mapping[str, str]) -> list[Case]:
    postgresql_url = sqlalchemy.URL.create(
        "postgresql+psycopg",
        postgresql["PGUSER"],
        database=postgresql["PGDATABASE"],
        query={"host": postgresql["PGHOST"]},
    ).render_as_string()
    return [
        Case("Flask-SQLAlchemy, mysqlclient", SQLALCHEMY, "mysql", with_url(mariadb)),
        Case("Django, mysqlclient", DJANGO, "mysql", mariadb),
        Case("Flask-SQLAlchemy, psycopg 3", SQLALCHEMY, "postgresql", {**postgresql, "DATABASE_URL": postgresql_url}),
    ]


def measure(server: Contender, case: Case) -> Measured:
    """Each figure is that of a server of its own, which the others' queries do not keep busy."""
    with started(server, case) as port:
        page = measure_page(port)
    with started(server, case) as port, closing(Witness(case.kind, case.variables)) as witness:
        after, left = measure_leaving(port, witness)
    with started(server, case) as port:
        return Measured(page, after, left, asyncio.run(measure_short(port)))


@contextmanager
def started(server: Contender, case: Case) -> Iterator[int]:
    """Its port."""
    with running(server, Path(sys.prefix), case.variables, setup=Setup(case.module)) as subject:
        # What a server learns, it has learned from earlier requests.
        for path in ("/started", "/short", "/started"):
            ask(subject.port, path)
        yield subject.port


def measure_page(port: int) -> float:
    with ExitStack() as stack:
        slow = [stack.enter_context(send(port, "/long")) for _ in range(SLOW)]
        until = time.monotonic() + LONG_SECONDS / 2
        waits = []
        while time.monotonic() < until:
            waits.append(ask(port, "/started"))
            time.sleep(0.05)
        for client in slow:
            client.settimeout(60)
            client.recv(1000)
    return max(waits)


def measure_leaving(port: int, witness: Witness) -> tuple[float, int]:
    clients = [send(port, "/blocked") for _ in range(LEAVING)]
    while witness.blocked == 0:
        time.sleep(0.01)
    # Until as many wait for the lock as ever do.
    time.sleep(0.5)
    for client in clients:
        client.close()
    left_at = time.monotonic()
    try:
        after = ask(port, "/short")
    except TimeoutError:
        after = LIMIT
    time.sleep(max(0.0, left_at + MOST_NEXT - time.monotonic()))
    return after, witness.blocked


async def measure_short(port: int) -> float:
    traffic, loop = Traffic(port), asyncio.get_running_loop()
    until = loop.time() + SECONDS

    async def ask_long(client: int) -> None:
        while loop.time() < until:
            await traffic.ask("/long", client)

    async def ask_short() -> list[float]:
        began = loop.time()
        answers = []
        for number in range(int(SECONDS / INTERVAL)):
            await asyncio.sleep(max(0.0, began + number * INTERVAL - loop.time()))
            answers.append(asyncio.create_task(traffic.ask("/short", 1, loop.time() + LIMIT)))
        return [(await answer).seconds for answer in answers][int(COLD / INTERVAL) :]

    long = [asyncio.create_task(ask_long(client)) for client in range(2, 2 + LONG_CLIENTS)]
    short = await ask_short()
    for task in long:
        task.cancel()
    await asyncio.gather(*long, return_exceptions=True)
    return statistics.quantiles(short, n=100)[98]


def main() -> int:
    missed = []
    print("| application | server | page without a query, worst | next query | still running | short queries, 99 % |")
    print("|---|---|---|---|---|---|")
    with private_mariadb() as mariadb, private_postgresql() as postgresql:
        for case in cases(mariadb, postgresql):
            for server in SERVERS:
                got = measure(server, case)
                print(
                    f"| {case.title} | {server.title} | {1000 * got.page:,.0f} ms | {1000 * got.next:,.0f} ms "
                    f"| {got.left} | {1000 * got.short:,.0f} ms |",
                    flush=True,
                )
                if server is THREADBRIDGE and (
                    got.page > MOST_PAGE or got.next > MOST_NEXT or got.left or got.short > MOST_SHORT
                ):
                    missed.append(case.title)
    print(f"threadbridge has missed: {', '.join(missed)}" if missed else "threadbridge has reached all it must")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
