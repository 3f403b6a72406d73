"""Code of several threads that must not get in each other's way, run at the same moments.

Between any two instructions of the package or of a test, a thread may be held up for a moment, so that others get in
between: with the interpreter's lock, too, and on one processor. Compiled code cannot be held up; there, threads only
change places as often as they can.

``RACES`` is how many seconds each race takes: by default few, since each run of the suite has them.
"""

from __future__ import annotations

import os
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SECONDS = float(os.environ.get("RACES", "0.3"))
# One of so many instructions is followed by a pause, which lasts for so many seconds at the most.
EACH = 40
LONGEST_PAUSE = 2e-4


class _HeldUp:
    """Holds up the calling thread, at random, in the code of the package and of the tests."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def on_call(self, frame: FrameType, event: str, argument: object) -> Any:
        """See `sys.settrace`."""
        if not frame.f_globals.get("__name__", "").startswith(("threadbridge.", "tests.")):
            return None
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        return self._on_instruction

    def _on_instruction(self, frame: FrameType, event: str, argument: object) -> Any:
        if event == "opcode" and self._random.randrange(EACH) == 0:
            time.sleep(self._random.random() * LONGEST_PAUSE)
        return self._on_instruction


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

    def run(number: int, runner: Callable[[], object]) -> None:
        try:
            gate.wait(30)
            sys.settrace(_HeldUp(number).on_call)
            runner()
        except BaseException as failure:  # noqa: BLE001 - it is raised below
            failures.append(failure)
        finally:
            sys.settrace(None)

    threads = [threading.Thread(target=run, args=each, daemon=True) for each in enumerate(runners)]
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
