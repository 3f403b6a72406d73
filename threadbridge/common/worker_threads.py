"""Thread pools for lanes and tasks that retry when the system cannot start another thread."""

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

_not_started = RepeatedLog(logger)

# Seconds for which a thread waits for its next call before it goes back to the executor. Calls in between take a tenth
# of the instructions of `ThreadPoolExecutor.submit`. Shutdown, also Python's own, waits for so long at most.
READY_FOR = 0.1


class _Call:
    """A call of a thread. ``is_void``, guarded by the owner's lock: no thread could be started for it."""

    is_void = False


class WorkerThreads:
    """Two `ThreadPoolExecutor`s, one with spare threads; each call makes one thread run ``work()`` once.

    :param threads: maximum number of threads, and of spare threads, which are called when all others are at work.
    :param work: what a called thread runs. Its last step, under the lock, is `release`.
    :param lock: the owner's, held for `call` and `release`; it guards all state here.
    """

    def __init__(self, name: str, threads: int, work: Callable[[], None], lock: threading.Lock) -> None:
        self._name = name
        self._limit = threads
        self._work = work
        self._lock = lock
        self._threads: set[int] = set()
        self._spare_threads: set[int] = set()
        self._executor, self._spares = (
            ThreadPoolExecutor(threads, thread_name_prefix=prefix, initializer=self._register, initargs=(started,))
            for prefix, started in ((name, self._threads), (f"{name}-spare", self._spare_threads))
        )
        # Of the executor's threads, those that wait for their next call, the last of them first to be called; what each
        # waits for; and how many have been called and not released.
        self._ready: dict[int, threading.Lock] = {}
        self._wakers: dict[int, threading.Lock] = {}
        self._at_work = 0
        # When a thread last could not be started; 0.0 once one has been started since.
        self.failed_at = 0.0

    @property
    def count(self) -> int:
        """The number of threads, idle ones included."""
        return len(self._threads) + len(self._spare_threads)

    def _register(self, threads: set[int]) -> None:
        # An error here would make the executor refuse all further calls.
        while True:
            try:
                with self._lock:
                    threads.add(threading.get_ident())
                    if self.failed_at:
                        self.failed_at = 0.0
                        logger.warning("threads %s can be started again", self._name)
                    return
            except MemoryError:
                time.sleep(0.1)

    def call(self) -> bool:
        """Make an idle or new thread work. Returns False, and logs it, if no thread can be started."""
        is_spare = self._at_work >= self._limit
        if self._ready and not is_spare:
            _, waker = self._ready.popitem()
            waker.release()
            self._at_work += 1
            return True
        call = _Call()
        try:
            (self._spares if is_spare else self._executor).submit(self._run, call)
        except NOT_STARTED as error:
            # The executor still keeps the call for its next idle thread.
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
        thread = threading.get_ident()
        with self._lock:
            if call.is_void:
                return
            if thread in self._spare_threads:
                waker = None
            else:
                waker = self._wakers.get(thread)
                if waker is None:
                    waker = self._wakers[thread] = threading.Lock()
                    waker.acquire()
        self._work()
        while waker is not None:
            if not waker.acquire(timeout=READY_FOR):
                with self._lock:
                    if self._ready.pop(thread, None) is not None:
                        return
                # It has been called just now.
                waker.acquire()
            self._work()

    def release(self) -> None:
        """End the calling thread's work: it waits for the next call."""
        thread = threading.get_ident()
        if thread not in self._spare_threads:
            self._at_work -= 1
            self._ready[thread] = self._wakers[thread]

    def close(self) -> None:
        """Let the threads end as soon as they are idle."""
        self._executor.shutdown(wait=False)
        self._spares.shutdown(wait=False)

    def join(self) -> None:
        """Wait until all have ended, after `close`. Not under the lock."""
        self._executor.shutdown(wait=True)
        self._spares.shutdown(wait=True)


class TaskThreads(Executor):
    """Runs functions in up to ``threads`` threads, in the order of submission.

    Unlike a `ThreadPoolExecutor`, if no thread can be started, `submit` refuses a task, and `keep` holds it.
    """

    def __init__(self, threads: int, name: str) -> None:
        self._limit = threads
        self._tasks: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._at_work = 0
        self._is_closed = False
        self._lock = threading.Lock()
        self._threads = WorkerThreads(name, threads, self._work, self._lock)

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """See `concurrent.futures.Executor`. Raises ``RuntimeError`` if there is no thread for it."""
        future: Future[Any] = Future()
        with self._lock:
            self._call_thread()
            if not self._at_work:
                raise RuntimeError("can't start new thread")
            self._tasks.append((future, lambda: function(*args, **kwargs)))
        return future

    def keep(self, function: Callable[[], object]) -> None:
        """Call the function as soon as there is a thread for it."""
        with self._lock:
            self._tasks.append((Future(), function))
            self._call_thread()

    def retry(self) -> bool:
        """Try again to start a thread if functions wait. Returns whether there is still none for them."""
        with self._lock:
            if self._tasks:
                self._call_thread()
            return bool(self._tasks) and not self._at_work

    def _call_thread(self) -> None:
        if not self._is_closed and self._at_work < self._limit and self._threads.call():
            self._at_work += 1

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._tasks:
                    self._at_work -= 1
                    self._threads.release()
                    return
                future, function = self._tasks.popleft()
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(function())
                except BaseException as error:  # noqa: BLE001 - as in Python's executors, it goes to who waits
                    future.set_exception(error)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """See `concurrent.futures.Executor`; tasks already submitted still run."""
        with self._lock:
            self._is_closed = True
        self._threads.close()
        if wait:
            self._threads.join()
