"""The executors that lend threads to lanes and tasks; where no thread can be started, it is asked for again later."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any

from threadbridge.common.repeated_log import RepeatedLog
from threadbridge.common.threads import NOT_STARTED

logger = logging.getLogger("threadbridge")

# Seconds after which a new thread looks again whether there is memory for it.
MEMORY_PAUSE = 0.1

_not_started = RepeatedLog(logger)


class _Call:
    """A call of a thread. ``is_void``, guarded by the owner's lock: no thread could be started for it."""

    is_void = False


class WorkerThreads:
    """A `ThreadPoolExecutor`, and another with spare threads, whose threads each run ``work()`` once for each call.

    :param name: stands in front of the threads' numbers in their names.
    :param threads: how many there are at most, and as many spare ones, which are called when all others are at work.
    :param work: what a called thread does. Its last step, under the lock, is `release`.
    :param lock: the owner's; it is held for `call` and `release`, and guards all that is here.
    """

    def __init__(self, name: str, threads: int, work: Callable[[], None], lock: threading.Lock) -> None:
        self._name = name
        self._limit = threads
        self._work = work
        self._lock = lock
        self._threads: set[int] = set()
        self._spare_threads: set[int] = set()
        self._executor = ThreadPoolExecutor(
            threads, thread_name_prefix=name, initializer=self._has_started, initargs=(self._threads,)
        )
        self._spares = ThreadPoolExecutor(
            threads, thread_name_prefix=f"{name}-spare", initializer=self._has_started, initargs=(self._spare_threads,)
        )
        # How many of the executor's threads have been called and have not been released.
        self._at_work = 0
        # When a thread last could not be started, by `time.monotonic`, if none has been since; or else 0.0.
        self.failed_at = 0.0

    @property
    def count(self) -> int:
        """How many there are, idle ones included."""
        return len(self._threads) + len(self._spare_threads)

    def _has_started(self, threads: set[int]) -> None:
        while not self._register(threads):
            time.sleep(MEMORY_PAUSE)

    def _register(self, threads: set[int]) -> bool:
        try:
            with self._lock:
                threads.add(threading.get_ident())
                if self.failed_at:
                    self.failed_at = 0.0
                    logger.warning("threads %s can be started again", self._name)
        except MemoryError:
            # After any error here the executor would refuse all further calls.
            return False
        return True

    def call(self) -> bool:
        """Have an idle thread, or a new one, work; whether there is one. Logs it when none can be started."""
        is_spare = self._at_work >= self._limit
        call = _Call()
        try:
            (self._spares if is_spare else self._executor).submit(self._run, call)
        except NOT_STARTED as error:
            # The executor keeps the call nevertheless, for the next thread that has nothing else to do.
            call.is_void = True
            self.failed_at = time.monotonic()
            _not_started.log(
                logging.ERROR,
                "no thread %s can be started in addition to %d others: %s. Trying again several times a second while "
                "there is work. Check the limits on threads (LimitNPROC=, TasksMax=, ulimit -u) and the free memory",
                self._name,
                self.count,
                error,
            )
            return False
        self._at_work += not is_spare
        return True

    def _run(self, call: _Call) -> None:
        with self._lock:
            if call.is_void:
                return
        self._work()

    def release(self) -> None:
        """The calling thread's work is done: it waits for the next call."""
        self._at_work -= threading.get_ident() not in self._spare_threads

    def close(self) -> None:
        """Let the threads end as soon as they are idle."""
        self._executor.shutdown(wait=False)
        self._spares.shutdown(wait=False)

    def join(self) -> None:
        """Wait until all have ended, after `close`. Not under the lock."""
        self._executor.shutdown(wait=True)
        self._spares.shutdown(wait=True)


class TaskThreads(Executor):
    """Runs functions in a few threads, in the order of their submission.

    :param threads: how many run at once.
    :param name: stands in the threads' names.

    Unlike with a `ThreadPoolExecutor` alone it is known what becomes of a task for which no thread can be
    started: `submit` refuses it, `keep` keeps it until `retry`.
    """

    def __init__(self, threads: int, name: str) -> None:
        self._limit = threads
        self._tasks: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._at_work = 0
        self._is_closed = False
        self._lock = threading.Lock()
        self._threads = WorkerThreads(name, threads, self._work, self._lock)

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """See `concurrent.futures.Executor`. Raises ``RuntimeError`` when there is no thread for it."""
        future: Future[Any] = Future()
        with self._lock:
            self._call_thread()
            if not self._at_work:
                raise RuntimeError("can't start new thread")
            self._tasks.append((future, lambda: function(*args, **kwargs)))
        return future

    def keep(self, function: Callable[[], object]) -> None:
        """Have the function called as soon as there is a thread for it."""
        with self._lock:
            self._tasks.append((Future(), function))
            self._call_thread()

    def retry(self) -> bool:
        """Try again to start a thread if functions wait; whether there is still none for them."""
        with self._lock:
            if self._tasks:
                self._call_thread()
            return bool(self._tasks) and not self._at_work

    def _call_thread(self) -> None:
        if not self._is_closed and self._at_work < self._limit and self._threads.call():
            self._at_work += 1

    def _work(self) -> None:
        while (task := self._next()) is not None:
            future, function = task
            if not future.set_running_or_notify_cancel():
                continue
            try:
                result = function()
            except BaseException as error:  # noqa: BLE001 - as in Python's executors, whoever waits for it gets it
                future.set_exception(error)
            else:
                future.set_result(result)

    def _next(self) -> tuple[Future[Any], Callable[[], Any]] | None:
        with self._lock:
            if self._tasks:
                return self._tasks.popleft()
            self._at_work -= 1
            self._threads.release()
            return None

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """See `concurrent.futures.Executor`; what has been submitted is still done."""
        with self._lock:
            self._is_closed = True
        self._threads.close()
        if wait:
            self._threads.join()
