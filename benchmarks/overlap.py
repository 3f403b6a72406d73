"""Overlapping slow queries on Tornado's wrappers and on the bridge, as figures and as a picture.

``python -m benchmarks.overlap`` fires 50 queries of 0.5 s at once at each server, on 10 database connections, and a
request for the page, which needs no query, a moment later. It takes about 40 s and writes ``docs/overlap.svg``.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import threading
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

from benchmarks.database import ProcessList
from benchmarks.servers import command
from benchmarks.timeline import Bar, Panel, picture
from tests.support.processes import ROOT, Frontend, private_mariadb

QUERIES = 50
CONNECTIONS = 10
SECONDS = 0.5
PAGE_AT = 0.25
TITLE = f"{QUERIES} queries of {SECONDS} s at the same moment, {CONNECTIONS} connections, one process"
IDEAL_MAKESPAN = SECONDS * QUERIES / CONNECTIONS
# Ten at a time are answered, after 0.5 s, 1 s, 1.5 s and so on.
IDEAL_MEDIAN = statistics.median(SECONDS * (number // CONNECTIONS + 1) for number in range(QUERIES))

# From the old wrapper to the new one; the bridge is started by the command that its users know.
COMMANDS = {
    "WSGIContainer(app)": command("wsgicontainer", "myapplication:app", CONNECTIONS),
    "WSGIContainer(app, executor)": command("executor", "myapplication:app", CONNECTIONS),
    "threadbridge": ("run.py", "--port={port}", "--logging=warning"),
}


class Watcher(threading.Thread):
    """Reads in the database's process list when each query began; they are told apart by their microseconds."""

    def __init__(self, process_list: ProcessList) -> None:
        super().__init__(name="watcher")
        self.began: dict[int, float] = {}
        self._process_list = process_list
        self._stop_asked = threading.Event()

    def run(self) -> None:
        while not self._stop_asked.wait(0.02):
            before = time.monotonic()
            sleeping = self._process_list.sleeping()
            now = (before + time.monotonic()) / 2
            for query in sleeping:
                self.began.setdefault(number_of(query.seconds), now - query.milliseconds / 1000)

    def stop(self) -> None:
        self._stop_asked.set()
        self.join()


def seconds_of(number: int) -> float:
    return SECONDS + number / 1_000_000


def number_of(seconds: float) -> int:
    return round((seconds - SECONDS) * 1_000_000)


async def get(port: int, path: str) -> float:
    """Ask for the path; give the moment when the whole answer was there."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    answer = await reader.read()
    answered = time.monotonic()
    writer.close()
    if not answer.startswith(b"HTTP/1.1 200 "):
        raise RuntimeError(f"GET {path} was answered with {answer[:500]!r}; expected status 200")
    return answered


async def wait(port: int, seconds: float) -> float:
    return await get(port, f"/query/?report=wait&seconds={seconds:.6f}&format=json")


async def fire(port: int) -> tuple[float, list[float], tuple[float, float]]:
    """The moments when the queries were sent, when each was answered, when the page was sent and answered."""
    # Templates are compiled and the connections made.
    await get(port, "/")
    await asyncio.gather(*(wait(port, 0.05) for _ in range(CONNECTIONS)))
    sent = time.monotonic()
    queries = [asyncio.ensure_future(wait(port, seconds_of(number))) for number in range(QUERIES)]
    await asyncio.sleep(PAGE_AT)
    page_sent = time.monotonic()
    page_answered = await get(port, "/")
    return sent, await asyncio.gather(*queries), (page_sent, page_answered)


def measure(title: str, arguments: tuple[str, ...], variables: Mapping[str, str]) -> Panel:
    settings = {**variables, "MYAPPLICATION_POOL_SIZE": str(CONNECTIONS), "MYAPPLICATION_DIAGNOSTICS": "1"}
    with Frontend(arguments, env=settings) as frontend, closing(ProcessList(variables)) as process_list:
        watcher = Watcher(process_list)
        watcher.start()
        try:
            sent, answered, page = asyncio.run(fire(frontend.port))
        finally:
            watcher.stop()
    bars = []
    for number in range(QUERIES):
        began = watcher.began[number] - sent
        bars.append(Bar(began, began + seconds_of(number), answered[number] - sent))
    return Panel(title, sorted(bars), page=(page[0] - sent, page[1] - sent))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overlap", description=__doc__)
    parser.add_argument("--picture", type=Path, default=ROOT / "docs" / "overlap.svg", help="the file to write")
    picture_file = parser.parse_args().picture

    print(TITLE)
    print(f"{'':30} makespan   / ideal   median   / ideal   page", flush=True)
    panels = []
    with private_mariadb() as variables:
        for title, arguments in COMMANDS.items():
            print(f"{title:30} ", end="", flush=True)
            panel = measure(title, arguments, variables)
            print(
                f"{panel.makespan:6.2f} s {panel.makespan / IDEAL_MAKESPAN:9.2f}"
                f" {panel.median:6.2f} s {panel.median / IDEAL_MEDIAN:9.2f} {panel.page_wait:7.3f} s",
                flush=True,
            )
            panels.append(panel)
    picture_file.write_text(picture(panels, TITLE), encoding="utf-8")
    print(f"The picture is in {picture_file}")


if __name__ == "__main__":
    main()
