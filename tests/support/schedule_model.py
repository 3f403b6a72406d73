"""What a schedule must do, by its rules alone: jobs that wait in the turns of their clients, and jobs that run."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from threadbridge.crossing.cost_cells import Cell, scaled
from threadbridge.crossing.costs import Costs
from threadbridge.crossing.estimate import Estimate
from threadbridge.crossing.recent_use import BOUNDS, UNKNOWN
from threadbridge.crossing.schedule import JUDGED_AFTER, OUTGROWN, Schedule

# Seconds after which every job is due.
PATIENCE = 100.0
# What a job is due after, as a multiple of its cost.
TIMES = 8.0


class Job:
    """A job of a client on a route."""

    def __init__(self, route: Cell | None, client: str, pinned: str = "") -> None:
        self.client = client
        self.estimate = Estimate(route, "/", client, pinned)

    def claim(self) -> bool:
        return True

    def run(self) -> None:
        """Nothing: the tests say how long it runs."""


def route_that_costs(seconds: float) -> Cell:
    """A route of which only this has been seen, by itself: it tells nothing about new routes."""
    route = Cell()
    for _ in range(20):
        route.learn(scaled(seconds), 0)
    return route


def put(schedule: Schedule, costs: Costs | None, job: Job, now: float) -> Job:
    """Add the job as a lane does."""
    if costs is not None:
        costs.estimate(job.estimate)
    schedule.file(job)
    schedule.put(job, now)
    return job


def start_next(schedule: Schedule, now: float) -> Job | None:
    """Take the next job and start it, as a lane with a free thread does."""
    job = schedule.take(now)
    if job is not None:
        schedule.start(job, now)
    assert job is None or isinstance(job, Job)
    return job


def schedule_of(width: int) -> tuple[Costs, Schedule, Callable[[float, str, float], Job]]:
    """A schedule, and a function that puts a job of this cost, client and time."""
    costs = Costs()
    schedule = Schedule(width, costs)
    routes: dict[float, Cell] = {}

    def arrive(seconds: float, client: str, now: float) -> Job:
        if seconds not in routes:
            routes[seconds] = route_that_costs(seconds)
        return put(schedule, costs, Job(routes[seconds], client), now)

    return costs, schedule, arrive


def level_of(seconds: float) -> int:
    return sum(seconds >= bound for bound in BOUNDS)


@dataclass
class Place:
    """Where a job waits: its level, and what is known of its client's turn there once it is the client's first.

    The turn began at ``began``; it is due at ``due`` at the latest, and not before ``earliest``. The job came to this
    level as the so-manyth, ``number``; several that were moved together have the same.
    """

    level: int
    earliest: float
    due: float
    began: float
    number: int


@dataclass
class Run:
    """A job that runs: since when, in which level it began, and after how many seconds it has outgrown its estimate."""

    started: float
    level: int
    allowed: float

    def levels(self, now: float) -> tuple[int, int]:
        """The lowest and the highest level as which it may count."""
        ran = now - self.started
        if ran < self.allowed - 1e-9:
            return self.level, self.level
        # It is expected to run for as long again, counted from some time in the second half of what it has run.
        return max(self.level, level_of(ran - 1e-9)), max(self.level, level_of(2 * ran + 1e-9))


@dataclass
class Model:
    """The jobs of a schedule. Jobs of a level wait by client, each client's in the order in which they came there."""

    width: int
    connections: int
    waiting: dict[Job, Place] = field(default_factory=dict)
    running: dict[Job, Run] = field(default_factory=dict)
    # How often a client was served while another waited for its turn: at most once, by the rules.
    served: dict[tuple[int, str, str], int] = field(default_factory=dict)
    # By level, the client served last, if nobody has looked there since: others that come meanwhile go first.
    last: dict[int, str] = field(default_factory=dict)
    numbers: int = 0

    def next_number(self) -> int:
        self.numbers += 1
        return self.numbers

    def queue(self, level: int, client: str) -> list[Job]:
        return [job for job, place in self.waiting.items() if place.level == level and job.client == client]

    def clients(self, level: int) -> set[str]:
        return {job.client for job, place in self.waiting.items() if place.level == level}

    def put(self, job: Job, now: float) -> None:
        self.waiting[job] = Place(job.estimate.level, now, now + patience(job), now, self.next_number())

    def leave(self, job: Job, now: float, *, is_served: bool) -> None:
        """A job does not wait any more, or not in this level: its client's next turn begins, or another job has it."""
        place = self.waiting[job]
        queue = self.queue(place.level, job.client)
        is_first = queue[0] is job
        del self.waiting[job]
        if is_served:
            self.last[place.level] = job.client
        if is_first and len(queue) > 1:
            following = self.waiting[queue[1]]
            if is_served:
                following.earliest = following.began = now
                following.due = min(max(now, place.due) + patience(queue[1]), now + PATIENCE)
            else:
                following.earliest, following.began, following.due = place.earliest, place.began, place.due
        if len(queue) == 1 or is_served:
            self.begin_to_wait(place.level, job.client)

    def begin_to_wait(self, level: int, client: str) -> None:
        """From now on, others are counted that are served before this client."""
        for key in [key for key in self.served if key[:2] == (level, client)]:
            del self.served[key]

    def look(self, schedule: Schedule, now: float) -> None:
        """A thread is free: in each level whose jobs may run, somebody looks who is next."""
        for level in list(self.last):
            may_run = self.may_run(level, schedule, now)
            if self.clients(level) and may_run is not False:
                for job in self.queue(level, self.last[level])[:1]:
                    self.waiting[job].began = now
                if may_run:
                    del self.last[level]

    def note_moves(self, now: float) -> None:
        """Note which of the waiting jobs were estimated again and wait in another level."""
        moved: dict[tuple[int, str], list[Job]] = {}
        number = self.next_number()
        for job, place in list(self.waiting.items()):
            if job.estimate.level != place.level:
                self.leave(job, now, is_served=True)
                if not self.queue(job.estimate.level, job.client):
                    self.begin_to_wait(job.estimate.level, job.client)
                self.waiting[job] = Place(job.estimate.level, place.earliest, place.due, now, number)
                moved.setdefault((job.estimate.level, job.client), []).append(job)
        for together in moved.values():
            if len(together) > 1:
                # In an order that is not known.
                earliest = min(self.waiting[job].earliest for job in together)
                for job in together:
                    self.waiting[job] = Place(job.estimate.level, earliest, math.inf, now, number)

    def start(self, job: Job, now: float) -> None:
        estimate = job.estimate
        allowed = JUDGED_AFTER if estimate.level == UNKNOWN else max(JUDGED_AFTER, OUTGROWN * estimate.cautious)
        self.running[job] = Run(now, estimate.level, allowed)

    def may_run(self, level: int, schedule: Schedule, now: float) -> bool | None:
        """Whether a job of this level may run; None if that depends on when the running ones were judged."""
        if level < schedule.limit:
            return True
        room = self.connections - schedule.kept(now) if schedule._expects_short(now) else self.width
        least = sum(run.levels(now)[0] >= schedule.limit for run in self.running.values())
        most = sum(run.levels(now)[1] >= schedule.limit for run in self.running.values())
        trying = any(run.level == UNKNOWN and now - run.started < run.allowed for run in self.running.values())
        if most < room or (level == UNKNOWN and not trying):
            return True
        return None if least < room else False


def patience(job: Job) -> float:
    return min(TIMES * job.estimate.seconds, PATIENCE)
