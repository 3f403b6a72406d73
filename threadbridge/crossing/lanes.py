"""Lanes: bounded queues, each with its own threads."""

from __future__ import annotations

import fnmatch
import logging
import math
import re
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

from threadbridge.common.repeated_log import RepeatedLog
from threadbridge.common.worker_threads import WorkerThreads
from threadbridge.crossing.costs import Costs
from threadbridge.crossing.replicas import Replica
from threadbridge.crossing.schedule import Job, Schedule
from threadbridge.http.client_connection import Origin, origin_of

logger = logging.getLogger("threadbridge")

_monotonic: Final = time.monotonic

# The weight of the latest service time in the average from which Retry-After is estimated.
LATEST_COUNTS: Final = 0.1
LONGEST_RETRY_AFTER: Final = 600
# Of a remote lane's ``queue``, one client may take a quarter.
PART_PER_CLIENT: Final = 4


def compiled(*patterns: str) -> Callable[[str], re.Match[str] | None]:
    """Return a function that tells whether ``PATH_INFO`` matches one of these patterns, which may contain * and ?."""
    # Paths are bytes as latin-1, as PATH_INFO has them.
    expressions = [fnmatch.translate(pattern.encode().decode("latin-1")) for pattern in patterns]
    # Without a pattern: nothing matches.
    return re.compile("|".join(expressions) or "(?!)").match


class Lane:
    """A bounded queue with its own threads, for requests whose paths match a pattern.

    With ``upstream``, it is a remote lane: other hosts run its requests, and it has neither threads nor a queue of its
    own.

    :param name: appears in logs and in the threads' names; letters, digits, ``-`` and ``_``.
    :param pattern: the lane's paths; ``*`` matches any characters, ``?`` matches one. It is compared with
        ``PATH_INFO``: the decoded path, otherwise not normalised. With a ``pool``, "" stands for no path: then the lane
        is only for what ``replica_for`` allows.
    :param threads: how many requests run at once; required unless there is an ``upstream``.
    :param queue: how many more may wait; with ``costs``, so many short ones and so many others. Beyond that, the newest
        request of the client with the most waiting requests, perhaps the one that has just come, is answered 503. For a
        remote lane: how many may be at the other hosts, a quarter of them for one client.
    :param deadline: seconds in which a request must be answered, or it is answered 504; None: the bridge's deadline.
    :param connections: how many connections the requests share, each of which it may hold for a part of its time; 0: as
        many as there are threads. Long requests are counted against them, so that short ones find one.
    :param costs: what requests cost, if those that are expected to be short are not to wait for long ones; None: the
        clients simply take turns.
    :param upstream: the URLs of other hosts that serve the application with threadbridge, such as ``http://r1:8000``.
    :param pool: a pool of connections to a replica, which GET and HEAD requests use in place of the application's own.

    Raises ``ValueError`` for an unusable value. One lock guards the jobs and the number of threads at work. Jobs are
    claimed under it, so that none is both waiting and running.
    """

    def __init__(
        self,
        name: str,
        pattern: str = "*",
        *,
        threads: int = 0,
        queue: int = 1000,
        deadline: float | None = None,
        connections: int = 0,
        costs: Costs | None = None,
        upstream: Sequence[str] = (),
        pool: object = None,
    ) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
            raise ValueError(f"a lane's name has only letters, digits, '-' and '_', not {name!r}")
        if not pattern.startswith(("/", "*")) and (pattern or pool is None):
            raise ValueError(f"lane {name}: the pattern {pattern!r} matches no path; begin it with '/' or '*'")
        try:
            self.upstream: tuple[Origin, ...] = tuple(dict.fromkeys(map(origin_of, upstream)))
        except ValueError as error:
            raise ValueError(f"lane {name}: upstream={error}") from None
        if upstream and threads:
            raise ValueError(f"lane {name}: give threads or upstream; a remote lane has no threads")
        if upstream and pool is not None:
            raise ValueError(
                f"lane {name}: give pool or upstream; the other hosts of a remote lane have their own pools"
            )
        if threads < 1 and not upstream:
            raise ValueError(f"lane {name}: threads={threads}; a lane needs at least 1 thread")
        if queue < 0:
            raise ValueError(f"lane {name}: queue={queue}; give 0 or more waiting requests")
        if upstream and not queue:
            raise ValueError(f"lane {name}: queue=0; a remote lane needs room for at least 1 request")
        if deadline is not None and not deadline > 0:
            raise ValueError(f"lane {name}: deadline={deadline}; give a positive number of seconds")
        self.name = name
        self.pattern = pattern
        self.threads = threads
        # As far as its requests can use them.
        self.connections = min(connections or threads, threads)
        self.queue = queue
        self.deadline = deadline
        self.pool = pool
        # What is known of the pool's database. The bridge sets it before the first request.
        self.replica: Replica | None = None
        self._failed = RepeatedLog(logger)
        self._matches = compiled(*([pattern] if pattern else []))
        self._lock = threading.Lock()
        self._threads = WorkerThreads(f"threadbridge-{name}", max(1, threads), self._work, self._lock)
        self._schedule = Schedule(threads, costs, self.connections)
        # Those of a remote lane, which only the loop changes, run on other hosts; and how many each client has there.
        self._running: set[Job] = set()
        self._elsewhere: dict[str, int] = {}
        # Running jobs that do not count: another may run in place of each, in a spare thread if need be.
        self._replaced: set[Job] = set()
        # Running jobs that will be replaced, in this order, as replaced ones come back.
        self._to_replace: dict[Job, None] = {}
        # Jobs that run elsewhere in place of jobs of this lane.
        self._guests: set[Job] = set()
        self._at_work = 0
        # Whether one of the threads at work has been called and has not begun yet.
        self._one_is_coming = False
        self._is_closed = False
        # How many requests were refused because they would have waited for too long. Owned by the loop.
        self.refused_early = 0
        self._service_time = 0.0

    def __repr__(self) -> str:
        where = f"upstream={[*map(str, self.upstream)]}" if self.upstream else f"threads={self.threads}"
        return f"Lane({self.name!r}, {self.pattern!r}, {where}, queue={self.queue})"

    def matches(self, path: str) -> bool:
        """Return whether a request for this path belongs here."""
        return self._matches(path) is not None

    @property
    def busy(self) -> int:
        """The number of threads at work, including replaced ones, or of requests at other hosts. Either side."""
        with self._lock:
            return len(self._running) if self.upstream else self._at_work

    @property
    def stuck(self) -> int:
        """The number of threads that have not returned although their requests have ended. Either side."""
        with self._lock:
            return len(self._replaced) + len(self._to_replace)

    @property
    def queued(self) -> int:
        """The number of requests that wait for a thread. Either side."""
        return len(self._schedule)

    @property
    def kept(self) -> int:
        """The number of connections, or threads, that long requests leave free for short ones. Either side."""
        with self._lock:
            return self._schedule.kept(_monotonic())

    @property
    def short_below(self) -> float:
        """The seconds below which a request counts as short at present; 0.0 if costs do not matter. Either side."""
        return self._schedule.short_below

    def expected_starts(self) -> dict[Job, float]:
        """Return in how many seconds each job that waits is likely to run, as far as costs are known. Either side."""
        with self._lock:
            return self._schedule.expected_starts(_monotonic())

    @property
    def outgrown(self) -> int:
        """The number of requests so far that have run for much longer than was expected. Either side."""
        return self._schedule.outgrown

    def spare(self) -> tuple[float, float]:
        """Return the share of the threads that long requests leave, and the seconds that a short one would wait.

        Either side.
        """
        with self._lock:
            held = self._schedule.held(_monotonic())
            work = self._schedule.short_work() or self._service_time * len(self._schedule)
        return max(0.0, 1 - held / self.threads), work / self.threads

    @property
    def free(self) -> int:
        """The number of further requests that could run now. Either side."""
        with self._lock:
            return max(0, self._room())

    def works(self) -> bool:
        """Return whether a thread of the lane can take requests, now or when the running ones are answered. Loop side.

        False if all threads, spare ones included, are stuck (`replace` was called for their jobs), or if all that exist
        are stuck and no other can be started; after a failed start, this tries again. A remote lane needs no thread.
        """
        if self.upstream:
            return True
        with self._lock:
            if len(self._to_replace) >= self.threads:
                return False
            if not self._threads.failed_at or self._threads.count > len(self._replaced) + len(self._to_replace):
                return True
            self._call_thread()
            return not self._threads.failed_at

    def has_room(self, job: Job) -> bool:
        """Return whether this job would run or may wait. Loop side."""
        with self._lock:
            self._file(job)
            return not self._is_closed and self._has_room(job)

    def class_of(self, job: Job) -> str:
        """Return the class in which the job would wait; "" if costs do not matter. Loop side."""
        with self._lock:
            self._file(job)
            return job.estimate.cost_class

    def _file(self, job: Job) -> None:
        # In a remote lane, it keeps the class that it had in the lane from which it came.
        if not self.upstream:
            self._schedule.file(job)

    def has_room_for(self, job: Job) -> bool:
        """Return whether there is room for this job, or `displace` would make room. Loop side."""
        with self._lock:
            self._file(job)
            return not self._is_closed and (
                self._has_room(job)
                or not (self.upstream or self._schedule.longest_queue_like(job.estimate).is_largest(job.client))
            )

    def _has_room(self, job: Job) -> bool:
        if self.upstream:
            of_client = self._elsewhere.get(job.client, 0)
            return len(self._running) < self.queue and of_client < max(1, self.queue // PART_PER_CLIENT)
        return self._schedule.room_for(job.estimate, _monotonic()) > -self.queue

    def displace(self, job: Job) -> Job | None:
        """Make room for this job in a full lane. Loop side.

        Returns the newest job of the client with the most in the longest queue of its class, which the caller answers,
        or None if no client has more there than this job's would have.
        """
        with self._lock:
            queue = self._schedule.longest_queue_like(job.estimate)
            if self._is_closed or self.upstream or queue.is_largest(job.client):
                return None
            displaced = queue.newest_of_largest()
            self._schedule.remove(displaced)
            return displaced

    def running(self) -> list[Job]:
        """Return the jobs that run now. Either side."""
        with self._lock:
            return list(self._running)

    def _room(self) -> int:
        """How many more jobs could run, less the number that waits."""
        return self._width() - len(self._running) - len(self._schedule)

    def _width(self) -> int:
        return self.threads + len(self._replaced) - len(self._guests)

    def expected_wait(self, job: Job) -> float:
        """Return how many seconds the job would wait at least, if it came now, as far as costs are known. Loop side."""
        if not len(self._schedule):
            return 0.0
        with self._lock:
            self._schedule.file(job)
            return self._schedule.expected_wait(job, _monotonic())

    def retry_after(self, job: Job) -> int:
        """Estimate the seconds until the queue before the job has been served. Loop side."""
        if self.upstream:
            # Nothing waits here.
            return 1
        seconds = self.expected_wait(job)
        if not (job.estimate.cost_class and job.estimate.is_known):
            seconds = max(seconds, self._service_time * (self.queued + 1) / self.threads)
        return min(LONGEST_RETRY_AFTER, max(1, math.ceil(seconds)))

    def put(self, job: Job) -> None:
        """Queue a job; call `wake` afterwards. Loop side."""
        with self._lock:
            self._schedule.put(job, _monotonic())

    def wake(self) -> None:
        """Start the lane's threads on the queue; one call is enough for several jobs. Loop side."""
        with self._lock:
            self._start_thread(_monotonic())

    def _start_thread(self, now: float) -> None:
        """Call another thread if a job may run in it."""
        if self._schedule.ready(now):
            self._call_thread()

    def _call_thread(self) -> None:
        # It calls the next one: all at once would contend for the interpreter.
        if self._one_is_coming or self._is_closed or self._at_work >= self._width():
            return
        # If none can be started, those at work go on, and the bridge's watch calls `wake` again.
        if self._threads.call():
            self._one_is_coming = True
            self._at_work += 1

    def withdraw(self, job: Job) -> bool:
        """Take a job out of the queue; return whether it was there. Loop side."""
        with self._lock:
            return self._schedule.remove(job)

    def replace(self, job: Job) -> bool:
        """Let another thread work in place of the one that runs this job, until that comes back. Loop side.

        Returns False if as many are replaced as the lane has threads: this one follows as soon as another comes back.
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
            self._schedule.drop(job)
            self._start_thread(_monotonic())

    def expect_short(self) -> None:
        """Keep threads for short requests from the start, as the application is known to have served. Loop side."""
        with self._lock:
            self._schedule.expect_short(_monotonic())

    def adopt(self, job: Job) -> None:
        """Count a job that another lane runs as one of this lane, until `release`. Loop side."""
        with self._lock:
            self._guests.add(job)
            self._schedule.start(job, _monotonic())

    def release(self, job: Job) -> None:
        """Note that an adopted job has ended; more than once does no harm. Either side."""
        with self._lock:
            if job in self._guests:
                now = _monotonic()
                self._guests.discard(job)
                self._schedule.end(job, now)
                self._start_thread(now)

    def begin_elsewhere(self, job: Job) -> None:
        """Count a job of a remote lane, until `end_elsewhere`. Loop side."""
        with self._lock:
            self._running.add(job)
            self._elsewhere[job.client] = self._elsewhere.get(job.client, 0) + 1

    def end_elsewhere(self, job: Job) -> None:
        """Note that a job of a remote lane has ended. Loop side."""
        with self._lock:
            self._running.discard(job)
            self._elsewhere[job.client] -= 1
            if not self._elsewhere[job.client]:
                del self._elsewhere[job.client]

    def _work(self) -> None:
        with self._lock:
            self._one_is_coming = False
            now = _monotonic()
            job = self._next(now)
            self._start_thread(now)
        while job is not None:
            started = _monotonic()
            try:
                job.run()
            except Exception as error:  # noqa: BLE001 - it is logged, and the thread must go on
                message = "a request of the lane %s failed in the server"
                self._failed.log(logging.ERROR, message, self.name, exc_info=error)
            now = _monotonic()
            took = now - started
            with self._lock:
                self._schedule.end(job, now)
                self._running.discard(job)
                self._replaced.discard(job)
                self._to_replace.pop(job, None)
                self._replace_next()
                self._service_time += (took - self._service_time) * (LATEST_COUNTS if self._service_time else 1)
                job = self._next(now)
                self._start_thread(now)

    def _next(self, now: float) -> Job | None:
        """Return the next job, claimed, or release the thread and return None. Worker side, under the lock."""
        # When a replaced thread has come back, more are at work than may be.
        while self._at_work <= self._width():
            job = self._schedule.take(now)
            if job is None:
                break
            if job.claim():
                self._running.add(job)
                self._schedule.start(job, now)
                return job
        self._at_work -= 1
        self._threads.release()
        return None

    def close(self) -> None:
        """Let the threads end when nothing waits any more. Loop side."""
        with self._lock:
            self._is_closed = True
            self._threads.close()

    def join(self) -> None:
        """Wait until all threads have ended, after `close`. Any thread but the loop's."""
        self._threads.join()
