"""What polite clients get beside a greedy one, with one, two and three frontends, by how the entry balances."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

from benchmarks.fleet.box import GRACE, LEASTCONN, Fleet
from benchmarks.fleet.load import percentile
from benchmarks.fleet.parts import PORT
from benchmarks.traffic import NO_ANSWER, Answer, Traffic

# Waits in the database, so that the frontends' connections are short, and not this machine's processors.
QUERY = "/query/?report=wait&seconds=0.1&format=json"
GREEDY_AT_ONCE = 300
POLITE, POLITE_PAUSE = 12, 0.2
# Not a polite one.
GREEDY = POLITE
WARM_UP, SECONDS = 3.0, 10.0
BALANCES: Mapping[str, str] = {
    "round robin": "balance roundrobin",
    "least connections": LEASTCONN,
    "by client": "balance source\nhash-type consistent",
}
# The setting queue of the frontends: the default, and one that is shorter than what the greedy client sends.
QUEUES = (1000, 60)


class Outcome(NamedTuple):
    """What the clients got."""

    polite: list[Answer]
    greedy: list[Answer]

    @property
    def refused(self) -> float:
        """The share of the polite clients' requests that were not answered 200."""
        return sum(answer.status != 200 for answer in self.polite) / max(len(self.polite), 1)

    @property
    def slow(self) -> float:
        """Seconds within which 99 % of their answers came."""
        return percentile([answer.seconds for answer in self.polite if answer.status == 200], 99)

    @property
    def rate(self) -> float:
        """Requests of all clients that were answered 200, a second."""
        return sum(answer.status == 200 for answer in [*self.polite, *self.greedy]) / SECONDS


async def send(fleet: Fleet, seconds: float = SECONDS, warm_up: float = WARM_UP) -> Outcome:
    """Send both clients' requests; what ends in the warm-up does not count."""
    traffic = Traffic(PORT, fleet.entry.host.address, fleet.network.clients.__getitem__)
    begun = time.monotonic() + warm_up
    end = begun + seconds
    polite: list[Answer] = []
    greedy: list[Answer] = []

    async def ask(client: int, answers: list[Answer], pause: float) -> None:
        while time.monotonic() < end:
            answer = await traffic.ask(QUERY, client, end)
            # One that was given up at the end says nothing.
            if begun < answer.answered < end and answer.status != NO_ANSWER:
                answers.append(answer)
            await asyncio.sleep(pause if answer.status == 200 else 0.2)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(GREEDY_AT_ONCE):
            tasks.create_task(ask(GREEDY, greedy, 0))
        for client in range(POLITE):
            tasks.create_task(ask(client, polite, POLITE_PAUSE))
    traffic.leave()
    return Outcome(polite, greedy)


def measure(fleet: Fleet, show: Callable[[str], None]) -> None:
    """Measure all cases, and show a table; afterwards the fleet is as before."""
    show("| `queue` | hosts | balance | polite: refused | polite: 99 % | answered a second |")
    show("|---|---|---|---|---|---|")
    try:
        for queue in QUEUES:
            restart_with(fleet, queue)
            for hosts in (1, 2, 3):
                for name, lines in BALANCES.items():
                    if hosts == 1 and lines != LEASTCONN:
                        continue
                    fleet.entry.configure(fleet.entry_configuration(hosts, lines))
                    fleet.wait_for_entry(*fleet.frontends[:hosts])
                    outcome = asyncio.run(send(fleet))
                    show(
                        f"| {queue} | {hosts} | {name if hosts > 1 else 'any'} | {100 * outcome.refused:.0f} % | "
                        f"{outcome.slow:.2f} s | {outcome.rate:.0f} |"
                    )
    finally:
        restart_with(fleet, None)
        fleet.entry.configure(fleet.entry_configuration())


def restart_with(fleet: Fleet, queue: int | None) -> None:
    """Restart all frontends with this length of the queue."""
    with _variable("THREADBRIDGE_QUEUE", queue):
        for frontend in fleet.frontends:
            frontend.host.stop(GRACE + 10)
            frontend.mend()


@contextmanager
def _variable(name: str, value: int | None) -> Iterator[None]:
    before = os.environ.pop(name, None)
    if value is not None:
        os.environ[name] = str(value)
    try:
        yield
    finally:
        os.environ.pop(name, None)
        if before is not None:
            os.environ[name] = before
