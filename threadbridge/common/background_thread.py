"""A background thread for work the calling thread must not wait for."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable

from threadbridge.common.repeated_log import RepeatedLog
from threadbridge.common.threads import NOT_STARTED

logger = logging.getLogger("threadbridge")


class BackgroundThread:
    """Runs tasks one after the other in a daemon thread.

    `do` may be called while garbage is collected, that is between any two instructions of any thread: it takes no lock
    and starts no thread.
    """

    def __init__(self) -> None:
        self._tasks: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        # Whether something is to be done and, perhaps, no thread does it.
        self.lacks_thread = False
        self._no_thread, self._failed = RepeatedLog(logger), RepeatedLog(logger)

    def start(self) -> None:
        """Start the thread, unless it runs; no two threads may call this at once.

        It may be impossible for the moment. What is to be done waits until this is called the next time.
        """
        if self._thread is None:
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
                self.lacks_thread = False
        else:
            self.lacks_thread = False

    def do(self, task: Callable[[], None]) -> None:
        """Have it done soon."""
        self._tasks.put(task)
        if self._thread is None:
            self.lacks_thread = True

    def close(self) -> None:
        """End the thread when it has done what there is to do."""
        self._tasks.put(None)

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            try:
                task()
            except Exception as error:  # noqa: BLE001 - it is logged, and there are other connections
                self._failed.log(logging.ERROR, "a connection could not be returned to the pool", exc_info=error)
