"""Lanes: bounded queues, each in front of threads of its own."""

from __future__ import annotations

import fnmatch
import re
import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol


class Job(Protocol):
    """What can wait in a lane."""

    def claim(self) -> bool:
        """Whether it is still wanted; if so it counts as running from now on. Worker side."""

    def run(self) -> None:
        """Do it; must not raise. Worker side."""


class Lane:
    """A bounded queue in front of its own threads, for the requests whose path matches a pattern.

    :param name: stands in logs and in the threads' names; letters, digits, ``-`` and ``_``.
    :param pattern: which paths belong to the lane: a path, in which ``*`` stands for any characters, ``?`` for one.
    :param threads: how many requests run at once.
    :param queue: how many more may wait; the next one is answered 503 at once. Default 1000.

    Raises ``ValueError`` for an unusable value. The queue and the number of busy threads belong to both sides and are
    guarded by one lock, which nobody holds for more than a few instructions.
    """

    def __init__(self, name: str, pattern: str = "*", *, threads: int, queue: int = 1000) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
            raise ValueError(f"a lane's name has only letters, digits, '-' and '_', not {name!r}")
        if not pattern.startswith(("/", "*")):
            raise ValueError(f"lane {name}: the pattern {pattern!r} matches no path; begin it with '/' or '*'")
        if threads < 1:
            raise ValueError(f"lane {name}: threads={threads}; a lane needs at least 1 thread")
        if queue < 0:
            raise ValueError(f"lane {name}: queue={queue}; give 0 or more waiting requests")
        self.name = name
        self.pattern = pattern
        self.threads = threads
        self.queue = queue
        self._matches = re.compile(fnmatch.translate(pattern)).match
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix=f"threadbridge-{name}")
        self._lock = threading.Lock()
        self._waiting: deque[Job] = deque()
        self._withdrawn = 0
        self._busy = 0

    def __repr__(self) -> str:
        return f"Lane({self.name!r}, {self.pattern!r}, threads={self.threads}, queue={self.queue})"

    def matches(self, path: str) -> bool:
        """Whether a request for this path belongs here."""
        return self._matches(path) is not None

    @property
    def busy(self) -> int:
        """How many threads are at work."""
        return self._busy

    @property
    def queued(self) -> int:
        """How many requests wait for a thread."""
        return len(self._waiting) - self._withdrawn

    def has_room(self) -> bool:
        """Whether another request would run or may wait. Loop side."""
        return self._busy < self.threads or self.queued < self.queue

    def submit(self, job: Job) -> None:
        """Queue a job; one of the lane's threads runs it, unless it cannot be claimed by then. Loop side.

        A thread goes on with the next waiting job by itself: while there is work, neither a trip to the loop nor to
        the executor's own queue lies between two requests.
        """
        with self._lock:
            self._waiting.append(job)
            if self._busy == self.threads:
                return
            self._busy += 1
        self._executor.submit(self._work)

    def withdraw(self) -> None:
        """Note that one of the waiting jobs has ended and will not be run. Loop side.

        It keeps its place, which costs nothing, and is passed over when its turn comes.
        """
        with self._lock:
            self._withdrawn += 1

    def _work(self) -> None:
        while (job := self._take()) is not None:
            job.run()

    def _take(self) -> Job | None:
        """The next job, claimed; None releases the thread. Worker side."""
        with self._lock:
            while self._waiting:
                job = self._waiting.popleft()
                if job.claim():
                    return job
                self._withdrawn -= 1
            self._busy -= 1
            return None

    def close(self) -> None:
        """Let the threads end as soon as they are idle. Loop side."""
        self._executor.shutdown(wait=False)

    def join(self) -> None:
        """Wait until all threads have ended, after `close`. Any thread but the loop's."""
        self._executor.shutdown(wait=True)
