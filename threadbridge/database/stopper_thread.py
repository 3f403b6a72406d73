"""The stopper's thread: a daemon thread that runs tasks when they are due."""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
import time
import weakref
from collections.abc import Callable
from typing import NamedTuple

from threadbridge.common.repeated_log import RepeatedLog
from threadbridge.common.threads import NOT_STARTED

logger = logging.getLogger("threadbridge")

# The names of bounded calls' threads begin with it too.
NAME = "threadbridge-stopper"


class _Task(NamedTuple):
    due: float
    # Unique, so that comparisons end here.
    number: int
    run: Callable[[], None]
    repeats: bool


class StopperThread:
    """Runs tasks one at a time, each when it is due. Ends once it has been closed and no task is left.

    A condition that is not held while a task runs guards all state; ``thread`` and ``lacks_thread`` are read without.
    """

    def __init__(self) -> None:
        self._numbers = itertools.count()
        self._closed = False
        self._no_thread, self._errors = RepeatedLog(logger), RepeatedLog(logger)
        self._begin()

    def _begin(self) -> None:
        self._tasks: list[_Task] = []
        self._changed = threading.Condition()
        # None until the first task, and again when the thread has ended.
        self.thread: threading.Thread | None = None
        # Whether there are tasks and no thread could be started for them.
        self.lacks_thread = False

    def become_copy(self) -> None:
        """This is a forked process: drop the tasks. The thread is its parent's."""
        # The thread may have held the old condition when the process forked.
        self._begin()

    def add(self, due: float, run: Callable[[], None], *, repeats: bool = False) -> None:
        """Run a task at a time by `time.monotonic`. Any thread; returns at once."""
        with self._changed:
            if repeats and self._closed:
                return
            heapq.heappush(self._tasks, _Task(due, next(self._numbers), run, repeats))
            self._changed.notify()
        if self.thread is None:
            self.start()

    def repeat(self, method: Callable[[], None], interval: float) -> Callable[[], None]:
        """Call a bound method now, and again ``interval`` seconds after each call. Any thread.

        The calls end with `close`, with the method's object, or when the returned function is called. The method must
        not wait for the database.
        """
        reference = weakref.WeakMethod(method)
        is_withdrawn = threading.Event()

        def run() -> None:
            if is_withdrawn.is_set() or (call := reference()) is None:
                return
            try:
                call()
            finally:
                self.add(time.monotonic() + interval, run, repeats=True)

        self.add(time.monotonic(), run, repeats=True)
        return is_withdrawn.set

    def close(self) -> None:
        """Drop the repeated tasks, and let the thread end after the others. Any thread."""
        with self._changed:
            self._closed = True
            self._tasks[:] = [task for task in self._tasks if not task.repeats]
            heapq.heapify(self._tasks)
            self._changed.notify()

    def start(self) -> None:
        """Start the thread if it is needed and not running. Any thread. Requests for connections try this again."""
        with self._changed:
            if self.thread is not None or (self._closed and not self._tasks):
                return
            thread = threading.Thread(target=self._work, name=NAME, daemon=True)
            try:
                thread.start()
            except NOT_STARTED as error:
                self.lacks_thread = True
                self._no_thread.log(
                    logging.ERROR,
                    "cancelled queries cannot be stopped now, because no thread could be started: %s; trying again "
                    "when the next request needs a connection",
                    error,
                )
            else:
                # The new thread waits for the lock, so it sees this.
                self.thread = thread
                self.lacks_thread = False

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._tasks or self._tasks[0].due > time.monotonic():
                    if not self._tasks and self._closed:
                        self.thread = None
                        return
                    self._changed.wait(self._tasks[0].due - time.monotonic() if self._tasks else None)
                task = heapq.heappop(self._tasks)
            try:
                task.run()
            except Exception as error:  # noqa: BLE001 - it is logged, and the other tasks must run
                self._errors.log(
                    logging.ERROR, "error in the stopper thread; a cancelled query may still be running", exc_info=error
                )
            # While this thread waits for the next task, it must not keep alive what this one refers to.
            del task
