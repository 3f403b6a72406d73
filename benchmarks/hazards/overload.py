"""Ten times as many requests as a server can answer, at a steady pace, whatever becomes of them.

What it can answer is measured just before, with so many clients that no thread ever waits for a request: it depends on
what else the machine has to do.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable, Coroutine

from benchmarks import THREADS
from benchmarks.hazards.measures import Figures
from benchmarks.subject import Subject
from benchmarks.traffic import NO_ANSWER, Answer, Traffic

QUERY_SECONDS = 0.1
# If nothing but the queries took any time.
MOST_PER_SECOND = THREADS / QUERY_SECONDS
TIMES = 10
# It is counted from when the server is in the middle of it.
WARM_UP = 1.0
COUNTED = 3.0
PATH = f"/query?seconds={QUERY_SECONDS}"


class Load:
    """Sends requests; takes down how each was answered."""

    def __init__(self, port: int) -> None:
        self.answers: list[Answer] = []
        self._traffic = Traffic(port)

    async def saturate(self, seconds: float) -> None:
        """For so long, let twice as many clients as there are threads ask, each again when it is answered."""
        until = time.monotonic() + seconds

        async def client() -> None:
            while time.monotonic() < until:
                await self._request()

        await asyncio.gather(*(client() for _ in range(2 * THREADS)))
        self._traffic.leave()

    async def flood(self, seconds: float) -> None:
        """Send for so long, then leave."""
        began = time.monotonic()
        tasks: set[asyncio.Task[None]] = set()
        sent = 0
        while (elapsed := time.monotonic() - began) < seconds:
            for _ in range(int(elapsed * MOST_PER_SECOND * TIMES) - sent):
                task = asyncio.create_task(self._request())
                tasks.add(task)
                task.add_done_callback(tasks.discard)
                sent += 1
            await asyncio.sleep(0.001)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._traffic.leave()

    async def _request(self) -> None:
        answer = await self._traffic.ask(PATH)
        if answer.status != NO_ANSWER:
            self.answers.append(answer)


def answers(subject: Subject, load: Callable[[Load], Coroutine[None, None, None]]) -> list[Answer]:
    """Those that came in while it was counted."""
    measured = Load(subject.port)
    began = time.monotonic() + WARM_UP
    asyncio.run(load(measured))
    return [answer for answer in measured.answers if began < answer.answered <= began + COUNTED]


def overload(subject: Subject) -> Figures:
    """Ten times the requests that the database connections allow, each a query of 0.1 s, for four seconds."""
    capacity = sum(answer.status == 200 for answer in answers(subject, lambda load: load.saturate(WARM_UP + COUNTED)))
    under_flood = answers(subject, lambda load: load.flood(WARM_UP + COUNTED))
    refusals = [answer.seconds for answer in under_flood if answer.status == 503]
    return {
        "of capacity": sum(answer.status == 200 for answer in under_flood) / capacity,
        "capacity": capacity / COUNTED,
        "refusal": statistics.median(refusals) if refusals else "refuses none",
    }
