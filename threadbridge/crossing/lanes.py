"""Lanes: bounded, fair queues, each in front of threads of its own."""

from __future__ import annotations

import fnmatch
import logging
import math
import re
import threading
import time
from typing import Protocol

from threadbridge.common.repeated_log import RepeatedLog
from threadbridge.common.worker_threads import WorkerThreads
from threadbridge.crossing.fair_queue import FairQueue

logger = logging.getLogger("threadbridge")

# How much the latest service time counts in the average, from which Retry-After is estimated.
LATEST_COUNTS = 0.1
LONGEST_RETRY_AFTER = 60


class Job(Protocol):
    """What can wait in a lane."""

    @property
    def client(self) -> str:
        """Whose it is; clients are served in turn."""

    def claim(self) -> bool:
        """Whether it is still wanted; if so it counts as running from now on. Worker side."""

    def run(self) -> None:
        """Do it. Worker side."""


class Lane:
    """A bounded queue in front of its own threads, for the requests whose path matches a pattern.

    :param name: stands in logs and in the threads' names; letters, digits, ``-`` and ``_``.
    :param pattern: which paths belong to the lane: a path, in which ``*`` stands for any characters, ``?`` for one. It
        is compared with the path as the application gets it in ``PATH_INFO``: decoded, and not normalised otherwise.
    :param threads: how many requests run at once.
    :param queue: how many more may wait. When they do, the newest request of the client that has the most waiting is
        answered 503, which may be the one that has just come. Default 1000.
    :param deadline: seconds until a request must be answered, or it is answered 504; None: as for other lanes.

    Raises ``ValueError`` for an unusable value. What waits, what runs and how many threads are at work belongs to both
    sides and is guarded by one lock, which nobody holds for more than a few instructions. Jobs are claimed under it, so
    that each is waiting, running or neither whenever somebody looks.
    """

    def __init__(
        self, name: str, pattern: str = "*", *, threads: int, queue: int = 1000, deadline: float | None = None
    ) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
            raise ValueError(f"a lane's name has only letters, digits, '-' and '_', not {name!r}")
        if not pattern.startswith(("/", "*")):
            raise ValueError(f"lane {name}: the pattern {pattern!r} matches no path; begin it with '/' or '*'")
        if threads < 1:
            raise ValueError(f"lane {name}: threads={threads}; a lane needs at least 1 thread")
        if queue < 0:
            raise ValueError(f"lane {name}: queue={queue}; give 0 or more waiting requests")
        if deadline is not None and not deadline > 0:
            raise ValueError(f"lane {name}: deadline={deadline}; give a positive number of seconds")
        self.name = name
        self.pattern = pattern
        self.threads = threads
        self.queue = queue
        self.deadline = deadline
        self._failed = RepeatedLog(logger)
        # Paths are bytes as latin-1, as PATH_INFO has them.
        self._matches = re.compile(fnmatch.translate(pattern.encode().decode("latin-1"))).match
        self._lock = threading.Lock()
        self._threads = WorkerThreads(f"threadbridge-{name}", threads, self._work, self._lock)
        self._waiting: FairQueue[Job] = FairQueue()
        self._running: set[Job] = set()
        # Those running jobs that do not count: for each another may run, in a spare thread if need be.
        self._replaced: set[Job] = set()
        # Those for which another should run as soon as one of the replaced has come back, the first one first.
        self._to_replace: dict[Job, None] = {}
        self._at_work = 0
        # Whether one of those at work has been asked for and has not come yet.
        self._one_is_coming = False
        self._is_closed = False
        self._service_time = 0.0

    def __repr__(self) -> str:
        return f"Lane({self.name!r}, {self.pattern!r}, threads={self.threads}, queue={self.queue})"

    def matches(self, path: str) -> bool:
        """Whether a request for this path belongs here."""
        return self._matches(path) is not None

    @property
    def busy(self) -> int:
        """How many threads are at work, replaced ones included. Either side."""
        with self._lock:
            return self._at_work

    @property
    def queued(self) -> int:
        """How many requests wait for a thread. Either side."""
        return len(self._waiting)

    @property
    def free(self) -> int:
        """How many more requests could run now. Either side."""
        with self._lock:
            return max(0, self._room())

    def works(self) -> bool:
        """Whether a thread of the lane can take requests, now or when those that run are answered. Loop side.

        False when all its threads, and those that may take their places, are stuck; and when no thread can be started
        and none is there that is not stuck. A thread is stuck if `replace` was called for its job. An idle lane whose
        last thread could not be started tries it again.
        """
        with self._lock:
            if len(self._to_replace) >= self.threads:
                return False
            if not self._threads.failed_at or self._threads.count > len(self._replaced) + len(self._to_replace):
                return True
            self._start_thread()
            return not self._threads.failed_at

    def has_room(self) -> bool:
        """Whether another request would run or may wait. Loop side."""
        with self._lock:
            return self._room() > -self.queue

    def has_room_for(self, client: str) -> bool:
        """Whether there is room for another request of this client, or `displace` would make some. Loop side."""
        with self._lock:
            return self._room() > -self.queue or not self._waiting.is_largest(client)

    def displace(self, client: str) -> Job | None:
        """Make room for a request of this client in a full lane. Loop side.

        The newest request of the client with the most is taken out of the queue and returned; the caller answers it.
        None if there is no client with more than this one would have.
        """
        with self._lock:
            return None if self._waiting.is_largest(client) else self._waiting.take_newest_of_largest()

    def running(self) -> list[Job]:
        """The jobs that threads are running now. Either side."""
        with self._lock:
            return list(self._running)

    def _room(self) -> int:
        """How many more could run, less how many wait."""
        return self.threads + len(self._replaced) - len(self._running) - len(self._waiting)

    def _width(self) -> int:
        return self.threads + len(self._replaced)

    def retry_after(self) -> int:
        """In how many seconds, by the present service times, the queue may have been served. Loop side."""
        seconds = self._service_time * (self.queued + 1) / self.threads
        return min(LONGEST_RETRY_AFTER, max(1, math.ceil(seconds)))

    def put(self, job: Job) -> None:
        """Queue a job; after `wake`, a thread of the lane runs it, unless it cannot be claimed by then. Loop side.

        A thread goes on with the next waiting job by itself: while there is work, neither a trip to the loop nor to
        the executor's own queue lies between two requests.
        """
        with self._lock:
            self._waiting.put(job.client, job)

    def wake(self) -> None:
        """Start the lane's threads on what is queued; once for several jobs is enough. Loop side."""
        with self._lock:
            if self._waiting:
                self._start_thread()

    def _start_thread(self) -> None:
        """Ask for another thread if there may be one; who comes asks for the next one while there is work.

        All at once they would only contend for the interpreter.
        """
        if self._one_is_coming or self._is_closed or self._at_work >= self._width():
            return
        # If there is none, those at work go on with what waits, and the bridge's watch calls `wake` again.
        if self._threads.call():
            self._one_is_coming = True
            self._at_work += 1

    def withdraw(self, job: Job) -> bool:
        """Take a job out of the queue; whether it was there. Loop side."""
        with self._lock:
            return self._waiting.remove(job.client, job)

    def replace(self, job: Job) -> bool:
        """Let another thread work in place of the one that runs this job, until it comes back. Loop side.

        Whether one is left for it: as many may be replaced at once as the lane has threads. If none is, the job is
        replaced as soon as one of the others comes back.
        """
        with self._lock:
            if job in self._running and job not in self._replaced:
                self._to_replace[job] = None
                self._replace_next()
            return job not in self._to_replace

    def _replace_next(self) -> None:
        while self._to_replace and len(self._replaced) < self.threads:
            job = next(iter(self._to_replace))
            del self._to_replace[job]
            self._replaced.add(job)
            if self._waiting:
                self._start_thread()

    def _work(self) -> None:
        with self._lock:
            self._one_is_coming = False
            job = self._next()
            if self._waiting:
                self._start_thread()
        while job is not None:
            started = time.monotonic()
            try:
                job.run()
            except Exception as error:  # noqa: BLE001 - it is logged, and the thread must go on
                self._failed.log(
                    logging.ERROR, "a request of the lane %s failed in the server", self.name, exc_info=error
                )
            took = time.monotonic() - started
            with self._lock:
                self._running.discard(job)
                self._replaced.discard(job)
                self._to_replace.pop(job, None)
                self._replace_next()
                self._service_time += (took - self._service_time) * (LATEST_COUNTS if self._service_time else 1)
                job = self._next()

    def _next(self) -> Job | None:
        """The next job, claimed, for a thread at work; None releases the thread. Worker side, under the lock."""
        # There are more at work than may be when one has come back that was replaced.
        while self._waiting and self._at_work <= self._width():
            job = self._waiting.take()
            if job.claim():
                self._running.add(job)
                return job
        self._at_work -= 1
        self._threads.release()
        return None

    def close(self) -> None:
        """Let the threads end as soon as they are idle; those at work see to what still waits. Loop side."""
        with self._lock:
            self._is_closed = True
            self._threads.close()

    def join(self) -> None:
        """Wait until all threads have ended, after `close`. Any thread but the loop's."""
        self._threads.join()
