"""Code of several threads that must not get in each other's way, run at the same moments.

With the interpreter's lock, threads change places as often as they can; without it, they really run at the same time.
``RACES`` is how many seconds each race takes: by default few, since each run of the suite has them.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SECONDS = float(os.environ.get("RACES", "0.3"))


@contextmanager
def _hurried() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def race(*runners: Callable[[], object]) -> None:
    """Call each of them in a thread of its own, all at the same moment; raise what one of them has raised."""
    failures: list[BaseException] = []
    gate = threading.Barrier(len(runners))

    def run(runner: Callable[[], object]) -> None:
        try:
            gate.wait(30)
            runner()
        except BaseException as failure:  # noqa: BLE001 - it is raised below
            failures.append(failure)

    threads = [threading.Thread(target=run, args=(runner,), daemon=True) for runner in runners]
    with _hurried():
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60 + SECONDS)
    assert not any(thread.is_alive() for thread in threads), "a thread waits for ever"
    for failure in failures:
        raise failure


def rounds() -> Iterator[int]:
    """Count up from 0 until the time of a race is over."""
    end = time.monotonic() + SECONDS
    number = 0
    while number == 0 or time.monotonic() < end:
        yield number
        number += 1
