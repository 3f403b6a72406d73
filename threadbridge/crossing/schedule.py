"""The order in which waiting requests run: short ones do not wait for long ones, and no request waits for ever."""

from __future__ import annotations

import math
from typing import Final, Protocol

from threadbridge.crossing.costs import Costs
from threadbridge.crossing.estimate import Estimate
from threadbridge.crossing.fair_queue import FairQueue
from threadbridge.crossing.recent_use import BOUNDS, SHORT, UNKNOWN, RecentUse, level_of

# A request is due when it has waited for so many times its cost, but at most for so many seconds. What comes later than
# it is due does not overtake it.
TIMES_ITS_COST: Final = 8.0
PATIENCE: Final = 100.0
# Connections are kept for so many seconds after the last short request.
REMEMBERED: Final = 300.0
# Seconds between two definitions of what is short.
DEFINED_EVERY: Final = 0.1
# A request has outgrown its estimate after so many times its cautious estimate, but not before so many seconds, after
# which one whose cost is not known has outgrown it anyway.
OUTGROWN: Final = 2.0
JUDGED_AFTER: Final = 0.05
# Seconds after which a job holds its thread for so long that short ones must do without, whatever was expected of it.
HELD_AFTER: Final = 0.5


class Job(Protocol):
    """What can wait in a schedule."""

    estimate: Estimate

    @property
    def client(self) -> str:
        """The client it belongs to; clients are served in turn."""

    def claim(self) -> bool:
        """Begin to run; False when the job is no longer wanted. Worker side."""

    def run(self) -> None:
        """Do the work. Worker side."""


class Running:
    """A job that runs: since when, at which level it counts, and when it is judged next."""

    def __init__(self, level: int, started: float, judged_at: float) -> None:
        self.level = level
        self.started = started
        self.judged_at = judged_at


class Schedule:
    """The jobs of a lane that wait and run. Its owner locks it and passes the time, by `time.monotonic`.

    Jobs whose level is at least `limit` are long, as are unknown ones. They leave `kept` of the connections free, but
    for one unknown job at a time, which may try. Of the jobs that may run, the one that is due first does.

    :param width: how many jobs run at once.
    :param connections: how many connections they share, at most ``width``; None: each has its own. While short jobs
        come, no more long ones run than there are connections, less those kept: each may hold one for as long as it
        runs, and those that waited for one would be ahead of short ones. The other threads are for short jobs. While no
        short ones come, long ones may use all threads.
    :param costs: estimates the jobs again before they run, and learns from those that run for too long; None: all jobs
        have the same cost, so that clients simply take turns.
    """

    def __init__(self, width: int, costs: Costs | None, connections: int | None = None) -> None:
        self.width = width
        self._connections = width if connections is None else connections
        self._costs = costs
        self._levels: list[FairQueue[Job]] = [FairQueue() for _ in range(UNKNOWN + 1)]
        # Expected seconds of the jobs that wait, by level.
        self._work = [0.0] * (UNKNOWN + 1)
        self._waiting = 0
        self._running: dict[Job, Running] = {}
        self._next_judgement = 0.0
        self._use = RecentUse()
        self._define_at = 0.0
        self.limit = SHORT
        # Of fewer than four, one would be too much.
        self._most_kept = self._connections // 2 if self._connections >= 4 else 0
        self._to_keep = min(1, self._most_kept)
        # When the last short job came or ended.
        self._short_at = -math.inf
        # How many have outgrown their estimates.
        self.outgrown = 0

    def __len__(self) -> int:
        return self._waiting

    @property
    def running(self) -> int:
        """How many jobs run."""
        return len(self._running)

    def kept(self, now: float) -> int:
        """Return how many connections long jobs leave free at present."""
        return self._to_keep if self._expects_short(now) else 0

    def _expects_short(self, now: float) -> bool:
        return self._costs is not None and now - self._short_at < REMEMBERED

    def _for_long(self, now: float) -> int:
        """Return how many long jobs may run at once at present."""
        return self._connections - self._to_keep if self._expects_short(now) else self.width

    def expect_short(self, now: float) -> None:
        """Keep connections from the start, as short jobs may have come in an earlier life of the application."""
        self._short_at = now

    def file(self, job: Job) -> None:
        """Find the level and the class in which the job would wait."""
        estimate = job.estimate
        if self._costs is None or (estimate.route is None and not estimate.pinned):
            # It keeps the class that it had in the lane from which it came.
            estimate.level = 0
            return
        if estimate.pinned:
            level = level_of(estimate.cautious)
            estimate.level = min(level, SHORT - 1) if estimate.pinned == "short" else max(level, UNKNOWN - 1)
        else:
            estimate.level = level_of(estimate.cautious) if estimate.is_known else UNKNOWN
        estimate.cost_class = self._class_of(estimate.level)

    @property
    def short_below(self) -> float:
        """The seconds below which a job is short at present; 0.0 if all jobs have the same cost."""
        return 0.0 if self._costs is None else BOUNDS[self.limit - 1]

    def _class_of(self, level: int) -> str:
        return "short" if level < self.limit else "unknown" if level == UNKNOWN else "long"

    def put(self, job: Job, now: float) -> None:
        """Add a job that waits, in the level where `file` has found its place."""
        estimate = job.estimate
        estimate.queued_at = now
        estimate.due = now + _patience(estimate)
        self._add(job)
        if estimate.level < self.limit:
            self._short_at = now

    def _add(self, job: Job) -> None:
        estimate = job.estimate
        self._levels[estimate.level].put(job.client, job)
        self._work[estimate.level] += estimate.average
        self._waiting += 1

    def remove(self, job: Job) -> bool:
        """Take a job out that waits; return whether it was there."""
        estimate = job.estimate
        queue = self._levels[estimate.level]
        is_first = queue.first_of(job.client) is job
        if not queue.remove(job.client, job):
            return False
        following = queue.first_of(job.client)
        if is_first and following is not None:
            # It takes the turn as it is: a later one would delay the clients behind it.
            following.estimate.due = estimate.due
        self._work[estimate.level] = max(0.0, self._work[estimate.level] - estimate.average)
        self._waiting -= 1
        return True

    def take(self, now: float) -> Job | None:
        """Take out the job that runs next; call `start` if it does. None if there is none that may run now."""
        while self._waiting:
            level = self._next_level(now)
            if level < 0:
                return None
            queue = self._levels[level]
            job = queue.take()
            estimate = job.estimate
            self._work[level] = max(0.0, self._work[level] - estimate.average)
            self._waiting -= 1
            following = queue.first_of(job.client)
            if following is not None:
                # After the client's turn: one with many jobs is not ahead of others whose jobs cost a little more.
                due = max(now, estimate.due) + _patience(following.estimate)
                following.estimate.due = min(due, now + PATIENCE)
            if self._costs is not None and estimate.route is not None and now - estimate.queued_at > JUDGED_AFTER:
                # It has waited for long: more may have been learned.
                self._costs.estimate(estimate)
                self.file(job)
                if estimate.level > level or (level == UNKNOWN and estimate.level < level):
                    self._add(job)
                    continue
            return job
        return None

    def ready(self, now: float) -> bool:
        """Return whether a job that waits may run now."""
        return self._waiting > 0 and self._next_level(now) >= 0

    def _next_level(self, now: float) -> int:
        """Return the level whose next job runs next, or -1."""
        if self._costs is None:
            return 0 if len(self._levels[0]) else -1
        self._judge(now)
        chosen, due = -1, 0.0
        for level in range(self.limit):
            queue = self._levels[level]
            if len(queue):
                at = queue.head().estimate.due
                if chosen < 0 or at < due:
                    chosen, due = level, at
        may_long = may_unknown = True
        is_counted = False
        for level in range(self.limit, UNKNOWN + 1):
            queue = self._levels[level]
            if not len(queue):
                continue
            if not is_counted:
                is_counted = True
                may_long, may_unknown = self._may_run(now)
            if may_long or (level == UNKNOWN and may_unknown):
                at = queue.head().estimate.due
                if chosen < 0 or at < due:
                    chosen, due = level, at
        return chosen

    def _may_run(self, now: float) -> tuple[bool, bool]:
        """Return whether a long job may run now, and whether an unknown one may."""
        long = trying = 0
        for job, running in self._running.items():
            long += running.level >= self.limit
            trying += running.level == UNKNOWN and not job.estimate.outgrown
        may_long = long < self._for_long(now)
        return may_long, may_long or not trying

    def start(self, job: Job, now: float) -> None:
        """Count a job that was taken out as one that runs."""
        estimate = job.estimate
        if self._costs is None or (estimate.route is None and not estimate.pinned):
            self._running[job] = Running(0, now, math.inf)
            return
        judged_at = now + outgrown_after(estimate)
        self._running[job] = Running(estimate.level, now, judged_at)
        self._next_judgement = min(self._next_judgement, judged_at)

    def _judge(self, now: float) -> None:
        """Count each job that runs for longer than was expected as what it has become."""
        if now < self._next_judgement:
            return
        self._next_judgement = math.inf
        for job, running in self._running.items():
            if now >= running.judged_at:
                ran = now - running.started
                # What has run for so long is expected to run for as long again.
                running.level = max(running.level, level_of(2 * ran))
                running.judged_at = now + ran
                if not job.estimate.outgrown:
                    job.estimate.outgrown = True
                    self.outgrown += 1
                    assert self._costs is not None
                    # Not only when it ends, which may be much later.
                    self._costs.learn(job.estimate, 2 * ran)
            self._next_judgement = min(self._next_judgement, running.judged_at)

    def end(self, job: Job, now: float) -> None:
        """Note that a job does not run any more."""
        running = self._running.pop(job, None)
        if running is None or self._costs is None:
            return
        ran = now - running.started
        estimate = job.estimate
        if now >= running.judged_at and not estimate.outgrown:
            # Nothing has waited meanwhile: it has not been judged.
            running.level = max(running.level, level_of(ran))
            estimate.outgrown = True
            self.outgrown += 1
        began = level_of(ran) if estimate.level == UNKNOWN else min(estimate.level, UNKNOWN - 1)
        is_misjudged = began < SHORT and estimate.outgrown
        self._use.add(began, ran, min(running.level, UNKNOWN - 1) if is_misjudged else began, now)
        if began < self.limit and not is_misjudged:
            self._short_at = now
        if now >= self._define_at:
            self._define_at = now + DEFINED_EVERY
            # While nothing waits, nobody else does.
            self._judge(now)
            self._define_short(now)

    def _define_short(self, now: float) -> None:
        still_running = []
        for job, running in self._running.items():
            # What has run for so long is expected to run for as long again. A misjudged short one counts as long.
            level = running.level if job.estimate.level < SHORT else job.estimate.level
            still_running.append((min(level, UNKNOWN - 1), 2 * (now - running.started)))
        self.limit, self._to_keep = self._use.short(still_running, self._connections, self._most_kept, now)

    def held(self, now: float) -> int:
        """Return how many of the running jobs are long, or have run for `HELD_AFTER`."""
        limit = self.limit if self._costs is not None else UNKNOWN
        held = 0
        for running in self._running.values():
            held += limit <= running.level < UNKNOWN or now - running.started >= HELD_AFTER
        return held

    def short_work(self) -> float:
        """Return the seconds that the waiting short jobs are expected to take; 0.0 if costs do not matter."""
        return sum(self._work[: self.limit])

    def drop(self, job: Job) -> None:
        """Count a job that runs as one that does not, without learning from it."""
        self._running.pop(job, None)

    def room_for(self, estimate: Estimate, now: float) -> int:
        """Return how many more jobs of its class, short ones or all others, could run now, less those that wait."""
        is_short = estimate.level < self.limit
        room = self.width - len(self._running)
        if not is_short and self._costs is not None:
            long = 0
            for running in self._running.values():
                long += running.level >= self.limit
            room = min(room, self._for_long(now) - long)
        for level in range(self.limit) if is_short else range(self.limit, UNKNOWN + 1):
            room -= len(self._levels[level])
        return room

    def longest_queue_like(self, estimate: Estimate) -> FairQueue[Job]:
        """Return the longest queue of its class."""
        queue = self._levels[estimate.level]
        for level in range(self.limit) if estimate.level < self.limit else range(self.limit, UNKNOWN + 1):
            if len(self._levels[level]) > len(queue):
                queue = self._levels[level]
        return queue

    def expected_wait(self, job: Job, now: float) -> float:
        """Return how many seconds the job would wait at least, if it came now, as far as costs are known."""
        estimate = job.estimate
        queue = self._levels[estimate.level]
        own = queue.count_of(job.client) + 1
        # In its level, each client has one turn before each of its own.
        turns = min(len(queue), own * queue.clients)
        ahead = self._work[estimate.level] * turns / max(1, len(queue))
        # Each client's requests of lower levels are due before this one for about as long as this one takes.
        most = min(estimate.seconds, PATIENCE / TIMES_ITS_COST)
        for level in range(estimate.level):
            others = self._levels[level]
            if len(others):
                each = max(most, self._work[level] / len(others))
                ahead += min(self._work[level], each * others.clients)
        threads = self.width if estimate.level < self.limit else self._for_long(now)
        return ahead / max(1, threads)

    def expected_starts(self, now: float) -> dict[Job, float]:
        """Return in how many seconds each job that waits is likely to run, as far as costs are known."""
        found: dict[Job, float] = {}
        ahead = 0.0
        for level, queue in enumerate(self._levels):
            if len(queue):
                threads = self.width if level < self.limit else max(1, self._for_long(now))
                free_in = self._free_in(level, threads, now)
                share = self._work[level] / len(queue)
                for turn, job in enumerate(queue.in_turn()):
                    found[job] = free_in + (ahead + turn * share) / threads
                ahead += self._work[level]
        return found

    def _free_in(self, level: int, threads: int, now: float) -> float:
        """Return in how many seconds one of so many threads is likely to be free for a job of this level."""
        rivals = [
            (job.estimate.average, now - running.started)
            for job, running in self._running.items()
            if level < self.limit or running.level >= self.limit
        ]
        return 0.0 if len(rivals) < threads else min(cost - ran if ran < cost else ran for cost, ran in rivals)


def outgrown_after(estimate: Estimate) -> float:
    """Return the seconds after which a job that runs has outgrown its estimate."""
    if estimate.level == UNKNOWN:
        return JUDGED_AFTER
    return max(JUDGED_AFTER, OUTGROWN * _as_pinned(estimate, estimate.cautious))


def has_outgrown(estimate: Estimate, ran: float) -> bool:
    """Return whether a job that has run for so long has outgrown its estimate, even if nothing has judged it yet."""
    return estimate.outgrown or ran >= outgrown_after(estimate)


def _patience(estimate: Estimate) -> float:
    return min(TIMES_ITS_COST * _as_pinned(estimate, estimate.seconds), PATIENCE)


def _as_pinned(estimate: Estimate, seconds: float) -> float:
    """Return this cost, or the highest that is short if the settings say that the request is."""
    return min(seconds, BOUNDS[SHORT - 1]) if estimate.pinned == "short" else seconds
