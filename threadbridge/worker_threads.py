"""Threads started when there is work, and kept for more; one that cannot be started is asked for again later."""

from __future__ import annotations

import atexit
import logging
import os
import queue
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any

from threadbridge.repeated_log import RepeatedLog

logger = logging.getLogger("threadbridge")

_not_started = RepeatedLog(logger)

# As Python's executors do it: what applications start in these threads must not become daemons, as it would if they
# were. Then the interpreter waits for them before it calls what `atexit` has.
_register: Callable[[Callable[[], None]], object] = getattr(threading, "_register_atexit", atexit.register)
_DAEMON = _register is atexit.register


class WorkerThreads:
    """Threads that each run ``work()`` once for each call. Not locked: the owner's lock is held for `call`,
    `release` and `close`.

    :param name: stands in front of the threads' numbers in their names.
    :param work: what a called thread does. Its last step, under the owner's lock, is `release`.
    """

    def __init__(self, name: str, work: Callable[[], None]) -> None:
        self._name = name
        self._work = work
        # One item for each idle thread that is called: whether to work, or else to end.
        self._calls: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._idle = 0
        self._started = 0
        self._is_closed = False
        self._threads: set[threading.Thread] = set()
        # When a thread last could not be started, by `time.monotonic`, if none has been since; or else 0.0.
        self.failed_at = 0.0
        _all.add(self)

    @property
    def count(self) -> int:
        """How many there are, idle ones included."""
        return len(self._threads)

    def call(self) -> bool:
        """Have an idle thread, or a new one, work; whether there is one. Logs it when none can be started."""
        if self._idle:
            self._idle -= 1
            self._calls.put(True)
            return True
        # Not those of ThreadPoolExecutor: after a failed start it keeps the task, and nothing takes it.
        thread = threading.Thread(target=self._run, name=f"{self._name}_{self._started}", daemon=_DAEMON)
        try:
            thread.start()
        except (RuntimeError, MemoryError) as error:
            self.failed_at = time.monotonic()
            _not_started.log(
                logging.ERROR,
                "no thread %s can be started besides %d others: %s. Trying again several times a second while there is "
                "work. Look at the limits of processes and threads (LimitNPROC=, TasksMax=, ulimit -u) and at memory",
                self._name,
                len(self._threads),
                error,
            )
            return False
        if self.failed_at:
            logger.warning("threads %s can be started again", self._name)
            self.failed_at = 0.0
        self._started += 1
        self._threads.add(thread)
        return True

    def release(self) -> None:
        """The calling thread's work is done: it waits for the next call."""
        if self._is_closed:
            self._calls.put(False)
        else:
            self._idle += 1

    def close(self) -> None:
        """Let the threads end as soon as they are idle."""
        self._is_closed = True
        self._idle = 0
        # Also for those at work: at the interpreter's end no lock is held, and one may just have been released.
        for _ in range(len(self._threads)):
            self._calls.put(False)

    def join(self) -> None:
        """Wait until all have ended, after `close`."""
        for thread in list(self._threads):
            thread.join()

    def _run(self) -> None:
        self._work()
        while self._calls.get():
            self._work()
        self._threads.discard(threading.current_thread())


class TaskThreads(Executor):
    """Runs functions in a few threads, in the order of their submission.

    :param threads: how many run at once.
    :param name: stands in the threads' names.

    Unlike with `concurrent.futures.ThreadPoolExecutor` it is known what becomes of a task for which no thread can be
    started: `submit` refuses it, `keep` keeps it until `retry`.
    """

    def __init__(self, threads: int, name: str) -> None:
        self._limit = threads
        self._tasks: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._at_work = 0
        self._lock = threading.Lock()
        self._threads = WorkerThreads(name, self._work)

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """See `concurrent.futures.Executor`. Any thread. Raises ``RuntimeError`` when there is no thread for it."""
        future: Future[Any] = Future()
        with self._lock:
            self._call_thread()
            if not self._at_work:
                raise RuntimeError("can't start new thread")
            self._tasks.append((future, lambda: function(*args, **kwargs)))
        return future

    def keep(self, function: Callable[[], object]) -> None:
        """Have the function called as soon as there is a thread for it. Any thread."""
        with self._lock:
            self._tasks.append((Future(), function))
            self._call_thread()

    def retry(self) -> bool:
        """Try again to start a thread if functions wait; whether there is still none for them. Any thread."""
        with self._lock:
            if self._tasks:
                self._call_thread()
            return bool(self._tasks) and not self._at_work

    def _call_thread(self) -> None:
        if self._at_work < self._limit and self._threads.call():
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
            self._threads.close()
        if wait:
            self._threads.join()


_all: weakref.WeakSet[WorkerThreads] = weakref.WeakSet()
_pid = os.getpid()


def _end_all() -> None:
    """Let what runs end before the interpreter does, as it does with Python's executors."""
    # A forked child has only copies of them.
    if os.getpid() == _pid:
        for threads in list(_all):
            threads.close()
            threads.join()


_register(_end_all)
