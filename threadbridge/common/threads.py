"""Threads: a background thread, whether a thread collects garbage, and what each thread is doing."""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import logging
import queue
import re
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TypeVar

from threadbridge.common.repeated_log import RepeatedLog

logger = logging.getLogger("threadbridge")

_Result = TypeVar("_Result")

# What `threading.Thread.start` raises when no thread can be started for the moment.
NOT_STARTED = (RuntimeError, MemoryError)

# The thread that is collecting garbage, or 0. The interpreter never runs two collections at once.
_collecting_thread = 0


def _note_collection(phase: str, info: dict[str, int]) -> None:
    global _collecting_thread
    _collecting_thread = threading.get_ident() if phase == "start" else 0


gc.callbacks.append(_note_collection)


def is_collecting() -> bool:
    """Whether this thread is collecting garbage: it may hold any lock, and must wait for nothing."""
    return _collecting_thread == threading.get_ident()


def stacks() -> dict[int, str]:
    """Each thread's calls, innermost first, by the thread's `threading.get_ident`; at most about a hundred threads."""
    # Walking the frames of another thread (`sys._current_frames`) may crash the interpreter once that thread moves.
    # faulthandler lets no thread move, and writes only to real files.
    with tempfile.TemporaryFile() as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        text = file.read().decode(errors="backslashreplace")
    found = re.findall(r"hread 0x([0-9a-f]+).*\n((?:  .*\n)*)", text)
    return {int(number, 16): calls.rstrip() for number, calls in found}


async def in_thread(function: Callable[[], _Result], name: str) -> _Result:
    """Return what the function returns in a new thread of this name, which does not keep the process from ending.

    Python waits for the threads of its executors, even if they wait for a name server or a file system that has gone.
    Raises one of `NOT_STARTED` if the thread cannot be started, and what the function raises. Loop side.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[_Result] = loop.create_future()

    def end(set_outcome: Callable[[], None]) -> None:
        # It may have been cancelled.
        if not done.done():
            set_outcome()

    def run() -> None:
        outcome: Callable[[], None]
        try:
            result = function()
            outcome = partial(done.set_result, result)
        except BaseException as error:  # noqa: BLE001 - it goes to who waits
            outcome = partial(done.set_exception, error)
        # The loop may have been closed meanwhile.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(end, outcome)

    threading.Thread(target=run, name=name, daemon=True).start()
    return await done


class BackgroundThread:
    """Returns abandoned connections to the pool, in a daemon thread.

    The garbage collector may call `do` between any two instructions of any thread: it takes no lock, starts no thread.
    """

    def __init__(self) -> None:
        self._tasks: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._no_thread, self._failed = RepeatedLog(logger), RepeatedLog(logger)

    @property
    def lacks_thread(self) -> bool:
        """Whether tasks wait for `start`."""
        return self._thread is None and not self._tasks.empty()

    def start(self) -> None:
        """Start the thread unless it runs. If that fails, tasks wait for the next call. Not thread-safe."""
        if self._thread is not None:
            return
        thread = threading.Thread(target=self._work, name="threadbridge-background", daemon=True)
        try:
            thread.start()
        except NOT_STARTED as error:
            self._no_thread.log(
                logging.ERROR,
                "connections left to the garbage collector cannot be returned to the pool now, because no thread "
                "could be started: %s; trying again when the next request needs a connection",
                error,
            )
        else:
            self._thread = thread

    def do(self, task: Callable[[], object]) -> None:
        """Run the task soon."""
        self._tasks.put(task)

    def close(self) -> None:
        """End the thread after the tasks that are waiting."""
        self._tasks.put(None)

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            try:
                task()
            except Exception as error:  # noqa: BLE001 - it is logged, and other tasks go on
                self._failed.log(logging.ERROR, "a connection could not be returned to the pool", exc_info=error)
