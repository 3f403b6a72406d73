"""Ten times as many requests as a server can answer, at a steady pace, whatever becomes of them.

What it can answer is measured just before, with so many clients that no thread ever waits for a request: it depends on
what else the machine has to do.
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import time
from collections import deque
from collections.abc import Callable, Coroutine
from typing import NamedTuple

from benchmarks import THREADS
from benchmarks.clients import head
from benchmarks.hazards.measures import Figures
from benchmarks.subject import Subject

QUERY_SECONDS = 0.1
# If nothing but the queries took any time.
MOST_PER_SECOND = THREADS / QUERY_SECONDS
TIMES = 10
# It is counted from when the server is in the middle of it.
WARM_UP = 1.0
COUNTED = 3.0
REQUEST = head(f"/query?seconds={QUERY_SECONDS}")


class Answer(NamedTuple):
    """When a request was answered, after how many seconds, with which status."""

    moment: float
    seconds: float
    status: int


class Load:
    """Sends requests on connections that are kept, as a proxy does; takes down how each was answered."""

    def __init__(self, port: int) -> None:
        self.answers: list[Answer] = []
        self._port = port
        self._idle: deque[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = deque()

    async def saturate(self, seconds: float) -> None:
        """For so long, let twice as many clients as there are threads ask, each again when it is answered."""
        until = time.monotonic() + seconds

        async def client() -> None:
            while time.monotonic() < until:
                await self._request()

        await asyncio.gather(*(client() for _ in range(2 * THREADS)))
        self._leave()

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
        self._leave()

    def _leave(self) -> None:
        for _, writer in self._idle:
            writer.close()
        self._idle.clear()

    async def _request(self) -> None:
        began = time.monotonic()
        # A kept connection may have been closed by the server; a new one that fails counts as no answer.
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while self._idle:
                with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                    await self._ask(began, *self._idle.pop())
                    return
            await self._ask(began, *await asyncio.open_connection("127.0.0.1", self._port))

    async def _ask(self, began: float, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        keep = False
        try:
            writer.write(REQUEST)
            lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower().split("\r\n")
            fields = dict(line.split(": ", 1) for line in lines[1:] if ": " in line)
            keep = fields.get("connection") != "close" and "content-length" in fields
            if keep:
                await reader.readexactly(int(fields["content-length"]))
            now = time.monotonic()
            self.answers.append(Answer(now, now - began, int(lines[0].split()[1])))
        finally:
            if keep:
                self._idle.append((reader, writer))
            else:
                writer.close()


def answers(subject: Subject, load: Callable[[Load], Coroutine[None, None, None]]) -> list[Answer]:
    """Those that came in while it was counted."""
    measured = Load(subject.port)
    began = time.monotonic() + WARM_UP
    asyncio.run(load(measured))
    return [answer for answer in measured.answers if began < answer.moment <= began + COUNTED]


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
