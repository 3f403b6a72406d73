"""The schedule against a model of its rules, whatever comes, ends or changes in whatever order; time is a number."""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from tests.support.schedule_model import PATIENCE, Job, Model, level_of, put, route_that_costs, schedule_of, start_next
from threadbridge.crossing.cost_cells import Cell
from threadbridge.crossing.costs import Costs
from threadbridge.crossing.fair_queue import FairQueue
from threadbridge.crossing.recent_use import SHORT, UNKNOWN
from threadbridge.crossing.schedule import Schedule

COSTS = (0.001, 0.02, 0.09, 0.2, 0.7, 2.0, 30.0)


class Machine(RuleBasedStateMachine):
    """Does things to the schedule and to the model, and checks what the rules promise."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.costs = Costs()
        self.routes = [route_that_costs(seconds) for seconds in COSTS]
        self.taken: set[Job] = set()
        self.started = 0
        self.width = 0
        self.model = Model(0, 0)

    @rule(width=st.sampled_from([1, 2, 3, 4, 8]), connections=st.sampled_from([1, 2, 4, 8]))
    def reload(self, width: int, connections: int) -> None:
        """The next process knows the costs, and clients ask it again."""
        waiting = list(self.model.waiting)
        self.width = width
        self.model = Model(width, min(width, connections))
        self.schedule = Schedule(width, self.costs, self.model.connections)
        self.started = 0
        for job in waiting:
            self.arrives(Job(job.estimate.route, job.client, job.estimate.pinned))

    def arrives(self, job: Job) -> None:
        put(self.schedule, self.costs, job, self.now)
        self.model.put(job, self.now)

    @rule(
        jobs=st.lists(
            st.tuples(
                st.integers(0, len(COSTS) + 1), st.sampled_from("abcd"), st.sampled_from(["", "", "", "short", "long"])
            ),
            min_size=1,
            max_size=4,
        )
    )
    def arrive(self, jobs: list[tuple[int, str, str]]) -> None:
        if not self.width:
            self.reload(3, 3)
        for number, client, pinned in jobs:
            # Beyond those that are known: a new one.
            self.arrives(Job(self.routes[number] if number < len(self.routes) else Cell(), client, pinned))

    @rule(seconds=st.sampled_from([0.0, 0.001, 0.06, 0.5, 3.0, 40.0, 101.0, 301.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(times=st.integers(1, 8))
    def take(self, times: int) -> None:
        """Free threads take jobs."""
        for _ in range(times):
            if self.width and len(self.model.running) < self.width:
                self.take_one()

    def take_one(self) -> None:
        model, schedule, now = self.model, self.schedule, self.now
        model.look(schedule, now)
        is_ready = schedule.ready(now)
        job = schedule.take(now)
        assert is_ready or job is None
        if job is None:
            model.note_moves(now)
            for level in {place.level for place in model.waiting.values()}:
                assert model.may_run(level, schedule, now) is not True, f"a job of level {level} waits in vain"
            return
        assert isinstance(job, Job)
        assert job in model.waiting
        assert job not in self.taken, "it was taken twice"
        self.taken.add(job)
        waited, runs_at = model.waiting[job].level, job.estimate.level
        if runs_at <= waited < UNKNOWN or waited == runs_at:
            # If it costs less than was thought, it runs at once; otherwise it has waited in its new level, too.
            job.estimate.level = waited
        model.note_moves(now)
        level, job.estimate.level = job.estimate.level, runs_at
        self.check_order(job, level)
        self.check_that_nobody_is_overtaken_for_ever(job, level)
        model.leave(job, now, is_served=True)
        assert model.may_run(level, schedule, now) is not False
        self.started += 1
        # Each seventh is not wanted any more: it does not run.
        if self.started % 7:
            schedule.start(job, now)
            model.start(job, now)

    def check_order(self, job: Job, level: int) -> None:
        """A client's jobs of a level run in their order, and between two of them runs at most one of each other."""
        queue = self.model.queue(level, job.client)
        assert self.model.waiting[queue[0]].number == self.model.waiting[job].number
        for client in self.model.clients(level) - {job.client}:
            key = (level, client, job.client)
            self.model.served[key] = self.model.served.get(key, 0) + 1
            assert self.model.served[key] == 1, f"{job.client} was served twice while {client} waited"

    def check_that_nobody_is_overtaken_for_ever(self, job: Job, level: int) -> None:
        """A level is as urgent as the job whose turn it is, and this is due 100 s after its turn began at the latest.

        So a turn that may be served is not overtaken by one of another level that began more than 100 s after it. If no
        other client waits in its level, it is not overtaken by one that began after it was due: after 8 times the cost
        of its job.
        """
        place = self.model.waiting[job]
        for other, others in self.model.waiting.items():
            if others.level == level or not self.model.may_run(others.level, self.schedule, self.now):
                continue
            if self.model.queue(others.level, other.client)[0] is other:
                is_alone = len(self.model.clients(others.level)) == 1
                bound = min(others.due, others.began + PATIENCE) if is_alone else others.began + PATIENCE
                assert place.earliest <= bound, "it was overtaken by one that came after it was due"

    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        if self.width and self.model.running:
            job = data.draw(st.sampled_from(list(self.model.running)))
            self.schedule.end(job, self.now)
            run = self.model.running.pop(job)
            self.costs.learn(job.estimate, self.now - run.started)

    @rule(data=st.data())
    def replace(self, data: st.DataObject) -> None:
        if self.width and self.model.running:
            job = data.draw(st.sampled_from(list(self.model.running)))
            self.schedule.drop(job)
            del self.model.running[job]
            # It comes back, and nothing changes.
            self.schedule.end(job, self.now)

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        if self.width and self.model.waiting:
            job = data.draw(st.sampled_from(list(self.model.waiting)))
            assert self.schedule.remove(job)
            self.model.leave(job, self.now, is_served=False)
            assert not self.schedule.remove(job)

    @rule(number=st.integers(0, len(COSTS) - 1), seconds=st.sampled_from(COSTS))
    def cost_changes(self, number: int, seconds: float) -> None:
        """Jobs that wait are estimated again when their turn comes."""
        for _ in range(5):
            self.costs.learn(Job(self.routes[number], "").estimate, seconds)

    @invariant()
    def the_counts_are_right(self) -> None:
        if not self.width:
            return
        assert len(self.schedule) == len(self.model.waiting)
        assert self.schedule.running == len(self.model.running)
        assert set(self.schedule._running) == set(self.model.running)
        assert self.schedule.outgrown <= self.started
        assert 0 <= self.schedule.kept(self.now) <= self.model.connections // 2
        assert SHORT <= self.schedule.limit < UNKNOWN
        if not self.model.waiting:
            last = Job(None, "a")
            last.estimate.level = UNKNOWN
            assert self.schedule.expected_wait(last, self.now) == pytest.approx(0, abs=1e-6)

    def teardown(self) -> None:
        """All that wait run if those that run end: nothing is lost."""
        if not self.width:
            return
        for _ in range(len(self.model.waiting) + 1):
            for job in list(self.model.running):
                self.schedule.end(job, self.now)
                del self.model.running[job]
            self.now += 0.1
            self.take(self.width)
        assert not self.model.waiting
        assert len(self.schedule) == 0


def test_whatever_happens_the_rules_hold() -> None:
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=100,
            stateful_step_count=60,
            deadline=None,
            # To make a failing run smaller takes minutes.
            phases=[Phase.reuse, Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_without_costs_it_is_a_fair_queue() -> None:
    chosen = random.Random(3)
    schedule, queue = Schedule(2, None), FairQueue[Job]()
    waiting: list[Job] = []
    for step in range(3000):
        now = step * chosen.choice([0.0, 0.01, 60.0])
        action = chosen.choice(["put", "put", "take", "remove"])
        if action == "put":
            job = put(schedule, None, Job(Cell(), chosen.choice("abcde")), now)
            queue.put(job.client, job)
            waiting.append(job)
        elif waiting and action == "take":
            assert schedule.ready(now)
            job = queue.take()
            assert start_next(schedule, now) is job
            waiting.remove(job)
            schedule.end(job, now + chosen.choice([0.0, 50.0]))
        elif waiting:
            job = chosen.choice(waiting)
            assert schedule.remove(job) == queue.remove(job.client, job)
            waiting.remove(job)
        assert len(schedule) == len(queue)
        assert schedule.kept(now) == 0
    assert schedule.outgrown == 0


@pytest.mark.parametrize(("cost", "due_after"), [(0.2, 1.6), (1.0, 8.0), (12.0, 96.0), (20.0, 100.0), (300.0, 100.0)])
def test_what_comes_after_a_job_is_due_does_not_overtake_it(cost: float, due_after: float) -> None:
    _, schedule, arrive = schedule_of(1)
    job = arrive(cost, "patient", 0.0)
    before = arrive(0.001, "a", due_after - 0.01)
    after = arrive(0.001, "b", due_after + 0.01)
    assert [schedule.take(due_after + 1) for _ in range(3)] == [before, job, after]


def test_a_turn_is_due_after_a_hundred_seconds_however_many_of_the_client_ran_before() -> None:
    _, schedule, arrive = schedule_of(8)
    jobs = [arrive(50.0, "many", 0.0) for _ in range(5)]
    assert [start_next(schedule, 0.0) for _ in range(4)] == jobs[:4]
    arrive(0.001, "late", 101.0)
    assert start_next(schedule, 101.0) is jobs[4]


def test_a_client_that_cancels_its_first_job_again_and_again_delays_others_by_one_turn() -> None:
    _, schedule, arrive = schedule_of(1)
    first = arrive(50.0, "restless", 0.0)
    job = arrive(50.0, "patient", 1.0)
    for now in range(50, 500, 50):
        following = arrive(50.0, "restless", float(now))
        assert schedule.remove(first)
        first = following
    late = arrive(0.001, "late", 500.0)
    assert [schedule.take(500.0) for _ in range(3)] == [first, job, late]


def test_a_client_does_not_bring_its_turn_forward_by_cancelling_a_job() -> None:
    _, schedule, arrive = schedule_of(1)
    many = [arrive(1.0, "many", 0.0) for _ in range(3)]
    assert schedule.take(1.0) is many[0]
    # Of its second, the turn is due at 16; the third was due at 8, when it came.
    other = arrive(0.001, "other", 10.0)
    assert schedule.remove(many[1])
    assert schedule.take(11.0) is other


@pytest.mark.parametrize("seconds", [0.001, 0.05, 30.0])
def test_two_hundred_jobs_of_one_client_delay_another_s_by_one_service(seconds: float) -> None:
    _, schedule, arrive = schedule_of(1)
    now = 0.0
    for number in range(200):
        arrive(seconds, "many", now)
        if number == 100:
            running = start_next(schedule, now)
    single = arrive(seconds, "single", now)
    assert running is not None
    order = []
    for _ in range(3):
        now += seconds
        schedule.end(running, now)
        running = start_next(schedule, now)
        assert running is not None
        order.append(running.client)
    assert order == ["single", "many", "many"]
    assert single.estimate.level == level_of(single.estimate.cautious)


def test_long_ones_leave_threads_free_as_long_as_short_ones_come() -> None:
    _, schedule, arrive = schedule_of(4)
    schedule.expect_short(0.0)
    for _ in range(4):
        arrive(30.0, "a", 0.0)
    started = [start_next(schedule, 0.0) for _ in range(4)]
    assert [job is None for job in started] == [False, False, False, True]
    short = arrive(0.001, "b", 100.0)
    assert start_next(schedule, 100.0) is short
    schedule.end(short, 100.001)
    assert not schedule.ready(399.0)
    assert start_next(schedule, 399.0) is None
    assert schedule.ready(401.0)
    assert start_next(schedule, 401.0) is not None


def test_a_short_one_that_only_comes_keeps_a_thread_free() -> None:
    _, schedule, arrive = schedule_of(4)
    for _ in range(3):
        arrive(30.0, "a", 0.0)
        assert start_next(schedule, 0.0) is not None
    schedule.remove(arrive(0.001, "b", 200.0))
    arrive(30.0, "a", 200.0)
    assert not schedule.ready(499.0)
    assert schedule.ready(501.0)


def test_half_of_the_threads_are_kept_at_most() -> None:
    _, schedule, arrive = schedule_of(8)
    kept = set()
    for step in range(4000):
        if step in (100, 101, 102):
            # Until then, a thread becomes free soon enough without.
            assert schedule.kept(step / 200) == 0
            arrive(30.0, "b", step / 200)
            assert start_next(schedule, step / 200) is not None
        # 10 s of short work each second.
        now = step / 200
        short = arrive(0.05, "a", now)
        assert start_next(schedule, now) is short
        schedule.end(short, now + 0.05)
        kept.add(schedule.kept(now))
    assert max(kept) == 4


@pytest.mark.parametrize("width", [1, 3, 4, 8])
@pytest.mark.parametrize("are_expected", [True, False])
def test_one_thread_of_four_or_more_is_kept_once_short_ones_have_come(width: int, are_expected: bool) -> None:
    _, schedule, arrive = schedule_of(width)
    if are_expected:
        schedule.expect_short(0.0)
    for _ in range(width):
        arrive(30.0, "a", 0.0)
    started = [start_next(schedule, 0.0) for _ in range(width)]
    assert sum(job is not None for job in started) == width - (are_expected and width >= 4)


def test_the_settings_decide_the_class_of_a_pinned_job() -> None:
    costs, schedule, _ = schedule_of(2)
    for pinned, seconds in (("short", 30.0), ("long", 0.001)):
        job = put(schedule, costs, Job(route_that_costs(seconds), "a", pinned), 0.0)
        assert (job.estimate.cost_class, job.estimate.level < SHORT) == (pinned, pinned == "short")


def test_short_ones_do_not_wait_behind_a_costly_one_that_the_settings_call_short() -> None:
    costs, schedule, arrive = schedule_of(1)
    pinned = put(schedule, costs, Job(route_that_costs(30.0), "a", "short"), 0.0)
    behind = put(schedule, costs, Job(route_that_costs(0.05), "b"), 0.0)
    assert pinned.estimate.level == behind.estimate.level
    late = arrive(0.3, "c", 1.0)
    assert [start_next(schedule, 1.0) for _ in range(3)] == [pinned, behind, late]
    # It is judged as a short one.
    assert schedule._running[pinned].judged_at < 1.3


def test_one_unknown_job_at_a_time_tries_on_a_kept_thread() -> None:
    costs, schedule, arrive = schedule_of(4)
    schedule.expect_short(0.0)
    for _ in range(3):
        arrive(30.0, "a", 0.0)
        assert start_next(schedule, 0.0) is not None
    first, second = (put(schedule, costs, Job(Cell(), client), 0.0) for client in "bc")
    assert first.estimate.cost_class == "unknown"
    assert start_next(schedule, 0.0) is first
    assert not schedule.ready(0.01)
    schedule.end(first, 0.02)
    assert start_next(schedule, 0.02) is second
    third = put(schedule, costs, Job(Cell(), "d"), 0.03)
    assert not schedule.ready(0.04)
    # By then, the second one is long, and none tries.
    assert start_next(schedule, 0.09) is third


def test_a_job_that_runs_for_too_long_counts_as_long() -> None:
    _, schedule, arrive = schedule_of(4)
    for _ in range(2):
        arrive(30.0, "b", 0.0)
        assert start_next(schedule, 0.0) is not None
    pretender = arrive(0.001, "a", 0.0)
    assert start_next(schedule, 0.0) is pretender
    long = arrive(30.0, "b", 0.0)
    schedule.remove(long)
    arrive(30.0, "b", 1.0)
    # It holds the last thread that long ones may have.
    assert start_next(schedule, 1.0) is None
    assert pretender.estimate.outgrown
    assert schedule.outgrown == 1
    schedule.end(pretender, 2.0)
    assert start_next(schedule, 2.0) is not None


def test_a_long_kind_that_looked_short_is_known_as_long_before_its_first_one_ends() -> None:
    _, schedule, arrive = schedule_of(4)
    for _ in range(4):
        arrive(0.001, "a", 0.0)
        assert start_next(schedule, 0.0) is not None
    # The judgement comes with the next look at the clock, and what has waited is estimated again.
    following = arrive(0.001, "a", 10.0)
    assert following.estimate.cost_class == "short"
    assert start_next(schedule, 10.1) is None
    assert following.estimate.cost_class == "long"
    assert len(schedule) == 1
