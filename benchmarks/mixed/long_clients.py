"""30 clients ask for long queries without pause; another one asks for a short query five times a second.

All servers are measured at the same time, since they only wait.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import NamedTuple

from benchmarks import THREADS
from benchmarks.mixed.application import CHANGING, LONG, SHORT, change
from benchmarks.mixed.figures import Latencies, latencies, overlap
from benchmarks.traffic import NO_ANSWER, Answer, Traffic

LONG_CLIENTS = 30
# Every so many seconds a short query is asked for, whether or not the one before was answered.
INTERVAL = 0.2
# The beginning in which a server that has just been started may still learn, in seconds; of a short run a third.
COLD = 10.0
# At the end, answers are awaited for so many times the long queries' duration: half as long again as ten connections
# need for the queries of all clients.
AWAITED = 1.5 * LONG_CLIENTS / THREADS
# Seconds until a client that was refused asks again.
PAUSE = 1.0
# Clients of queries that are still short wait so long after each, or the processor would be what the others wait for.
CHANGING_PAUSE = 1.0
# A short query was served as before if it took at most so many times the longest before, or so many seconds.
AS_BEFORE = 2.0
SURELY_AS_BEFORE = 0.1
# The change is over when so many in a row were served as before.
IN_A_ROW = 20


class Style(NamedTuple):
    """How the URLs of long and short queries differ; the functions make one of a random number generator."""

    title: str
    long: Callable[[random.Random], str]
    short: Callable[[random.Random], str]


def by_name(name: str) -> Callable[[random.Random], str]:
    def path(numbers: random.Random) -> str:
        region, limit = numbers.choice(("North", "South", "West")), numbers.choice((10, 100, 1000))
        return f"/named?region={region}&name={name}&customer={numbers.randint(1, 20_000)}&limit={limit}"

    return path


def by_period(first: int, last: int) -> Callable[[random.Random], str]:
    """A period of so many days, somewhere in two years."""

    def path(numbers: random.Random) -> str:
        begin = date(2023, 1, 1) + timedelta(numbers.randrange(365))
        end = begin + timedelta(numbers.randint(first, last))
        return f"/period?from={begin}&to={end}&region={numbers.choice(('North', 'South', 'West'))}"

    return path


STYLES = {
    "path": Style("told apart by the path", lambda _: "/long", lambda _: "/short"),
    "parameter": Style("told apart by one of four parameters", by_name(LONG), by_name(SHORT)),
    "period": Style("told apart by the length of a period", by_period(200, 365), by_period(1, 14)),
}
CHANGE = Style("a kind becomes long", by_name(CHANGING), by_name(SHORT))


@dataclass
class Share:
    """What a server did under one style.

    :param first_worst: the slowest short query of the beginning, in seconds.
    :param after: the short queries after it.
    :param refused: how many short queries were refused or not answered at all, from the start on.
    :param long_share: the part of the ten connections' time that long queries took, after the beginning.
    :param long_refused: how many long queries were refused.
    """

    first_worst: float
    after: Latencies
    refused: int
    long_share: float
    long_refused: int


@dataclass
class Change:
    """What a server did when one kind became long.

    :param before: the short queries before.
    :param recovered: seconds until the first of several short queries in a row that were served as before; None if
        there were none.
    :param worst: the slowest short query since the change.
    :param after: the short queries since they were served as before, or since the change if they never were.
    """

    before: Latencies
    recovered: float | None
    worst: float
    after: Latencies


class Clients:
    """The clients of one server; ``short`` and ``long`` are the answers to these queries."""

    def __init__(self, port: int, style: Style, seed: int) -> None:
        self.short: list[Answer] = []
        self.long: list[Answer] = []
        self._traffic = Traffic(port)
        self._style = style
        self._numbers = random.Random(seed)
        # When the changing queries become long.
        self.changes_at: float | None = None

    async def run(self, seconds: float, long: float) -> None:
        """Ask for so long, then wait for the answers."""
        until = time.monotonic() + seconds
        give_up = until + AWAITED * long
        tasks = [asyncio.create_task(self._ask_long(client, until, give_up)) for client in range(2, 2 + LONG_CLIENTS)]
        began = time.monotonic()
        for number in itertools.count():
            await asyncio.sleep(max(0.0, began + number * INTERVAL - time.monotonic()))
            if time.monotonic() >= until:
                break
            tasks.append(asyncio.create_task(self._ask_short(give_up)))
        await asyncio.gather(*tasks)
        self._traffic.leave()

    async def _ask_short(self, give_up: float) -> None:
        self.short.append(await self._traffic.ask(self._style.short(self._numbers), 1, give_up))

    async def _ask_long(self, client: int, until: float, give_up: float) -> None:
        while time.monotonic() < until:
            answer = await self._traffic.ask(self._style.long(self._numbers), client, give_up)
            self.long.append(answer)
            if answer.status != 200:
                await asyncio.sleep(PAUSE)
            elif self.changes_at is not None and answer.answered < self.changes_at:
                await asyncio.sleep(CHANGING_PAUSE)


def measure_style(style: Style, ports: Mapping[str, int], seconds: float, long: float) -> dict[str, Share]:
    """Put the load on servers that have just been started; what each did, by its name."""
    clients = {name: Clients(port, style, seed) for seed, (name, port) in enumerate(ports.items())}

    async def run() -> None:
        await asyncio.gather(*(each.run(seconds, long) for each in clients.values()))

    began = time.monotonic()
    asyncio.run(run())
    warm = began + min(COLD, seconds / 3)
    return {name: share(each, warm, began + seconds, long) for name, each in clients.items()}


def share(clients: Clients, warm: float, end: float, long: float) -> Share:
    served = [answer for answer in clients.long if answer.status == 200]
    # When each ran is not known: some servers hold answers back. All take turns, so it is the same on average.
    busy = sum(long * overlap(answer.sent, answer.answered, warm, end) / answer.seconds for answer in served)
    return Share(
        first_worst=max((answer.seconds for answer in clients.short if answer.sent < warm), default=0.0),
        after=latencies(answer for answer in clients.short if answer.sent >= warm),
        refused=sum(answer.status != 200 for answer in clients.short),
        long_share=busy / (THREADS * (end - warm)),
        long_refused=sum(answer.status not in (200, NO_ANSWER) for answer in clients.long),
    )


def measure_change(
    ports: Mapping[str, int], variables: Mapping[str, str], seconds: float, long: float
) -> dict[str, Change]:
    """Let a kind of query become long after a third of the time."""
    clients = {name: Clients(port, CHANGE, seed) for seed, (name, port) in enumerate(ports.items())}

    async def run() -> float:
        began = time.monotonic()
        for each in clients.values():
            each.changes_at = began + seconds / 3
        running = [asyncio.create_task(each.run(seconds, long)) for each in clients.values()]
        await asyncio.sleep(seconds / 3)
        changed = time.monotonic()
        await asyncio.to_thread(change, variables, long)
        await asyncio.gather(*running)
        return changed

    changed = asyncio.run(run())
    return {name: as_before(each.short, changed, long) for name, each in clients.items()}


def as_before(short: Sequence[Answer], changed: float, long: float) -> Change:
    # The latest of them: a server that has just been started is slow at first.
    before = latencies(answer for answer in short if changed - long < answer.sent and answer.answered < changed)
    since = sorted((answer for answer in short if answer.answered >= changed), key=lambda answer: answer.sent)
    usual = max(AS_BEFORE * before.worst, SURELY_AS_BEFORE)
    is_usual = [answer.seconds <= usual and answer.status == 200 for answer in since]
    firsts = (first for first in range(len(since) - IN_A_ROW + 1) if all(is_usual[first : first + IN_A_ROW]))
    first = next(firsts, None)
    after = [] if first is None else since[first:]
    return Change(
        before=before,
        recovered=max(0.0, after[0].sent - changed) if after else None,
        worst=max((answer.seconds for answer in since), default=0.0),
        after=latencies(after or since),
    )
