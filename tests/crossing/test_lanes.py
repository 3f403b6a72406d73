"""Lanes: which requests go where, how many run and wait, and that no thread too many or too few is ever at work."""

from __future__ import annotations

import gc
import random
import re
import threading
import weakref
from collections.abc import Callable
from wsgiref.types import StartResponse, WSGIEnvironment

import pytest

from tests.support.inprocess import BridgeThread, queue_job, wait_until
from threadbridge import Lane
from threadbridge.crossing.estimate import Estimate


class Work:
    """A job that runs until it is let go on."""

    def __init__(self, client: str = "", *, wanted: bool = True, also: Callable[[], None] = lambda: None) -> None:
        self.client = client
        self.estimate = Estimate(None, "/", client)
        self.wanted = wanted
        self.started = threading.Event()
        self.go_on = threading.Event()
        self._also = also

    def claim(self) -> bool:
        return self.wanted

    def run(self) -> None:
        self.started.set()
        assert self.go_on.wait(20)
        self._also()


def started(works: list[Work]) -> int:
    return sum(work.started.is_set() for work in works)


def submit(lane: Lane, count: int) -> list[Work]:
    works = [Work() for _ in range(count)]
    for work in works:
        queue_job(lane, work)
    return works


def let_go(lane: Lane, works: list[Work]) -> None:
    for work in works:
        work.go_on.set()
    wait_until(lambda: lane.busy == 0, "all threads are idle")


def assert_width(lane: Lane) -> None:
    """Exactly as many jobs run at once as the lane has threads, and all that are submitted run."""
    works = submit(lane, lane.threads + 1)
    wait_until(lambda: started(works) == lane.threads, "every thread is at work")
    assert (lane.busy, lane.free, lane.queued) == (lane.threads, 0, 1)
    let_go(lane, works)
    assert started(works) == len(works)
    assert (lane.busy, lane.free, lane.queued) == (0, lane.threads, 0)


@pytest.fixture
def lane() -> Lane:
    return Lane("test", threads=3, queue=2)


def test_as_many_run_as_there_are_threads_and_as_many_wait_as_the_queue_holds(lane: Lane) -> None:
    works = []
    # In one go, so that none of the threads has begun: what they will take is not counted as waiting.
    while lane.has_room(Work()):
        works += submit(lane, 1)
    assert len(works) == 3 + 2
    wait_until(lambda: started(works) == 3, "three run")
    assert not lane.has_room(Work()) and lane.queued == 2
    works[0].go_on.set()
    wait_until(lambda: started(works) == 4, "the next runs in its thread")
    assert lane.has_room(Work())
    let_go(lane, works)
    assert_width(lane)


def test_what_is_withdrawn_gives_its_place_and_its_memory_back(lane: Lane) -> None:
    works = submit(lane, 3)
    wait_until(lambda: started(works) == 3, "the threads are taken")
    # Many more than the queue holds come and go while no thread is free.
    for _ in range(1000):
        leaving = submit(lane, 2)
        assert not lane.has_room(Work())
        assert all(map(lane.withdraw, leaving))
        assert lane.queued == 0 and lane.has_room(Work())
    is_kept = weakref.ref(leaving.pop())
    leaving.clear()
    gc.collect()
    assert is_kept() is None
    let_go(lane, works)
    assert_width(lane)


def test_what_is_not_wanted_any_more_is_passed_over(lane: Lane) -> None:
    works = submit(lane, 3)
    wait_until(lambda: started(works) == 3, "the threads are taken")
    unwanted = Work(wanted=False)
    queue_job(lane, unwanted)
    works += submit(lane, 1)
    works[0].go_on.set()
    wait_until(works[-1].started.is_set, "the one behind it runs")
    assert not lane.withdraw(unwanted)
    let_go(lane, works)
    assert not unwanted.started.is_set()
    assert_width(lane)


def test_a_job_that_raises_costs_no_thread(lane: Lane, caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        raise OSError("no space left")

    works = [Work(also=fail) for _ in range(7)]
    for work in works:
        queue_job(lane, work)
    let_go(lane, works)
    assert caplog.messages == ["a request of the lane test failed in the server"]
    assert_width(lane)


def test_a_stuck_thread_is_replaced_until_it_comes_back(lane: Lane) -> None:
    stuck = submit(lane, 3)
    wait_until(lambda: started(stuck) == 3, "the threads are taken")
    works = submit(lane, 2)
    assert lane.replace(stuck[0]) and lane.replace(stuck[0])
    wait_until(lambda: started(works) == 1, "one waiting job runs beside it")
    assert lane.free == 0 and lane.busy == 4
    # The thread that comes back finds another in its place: it must not take the waiting job too.
    stuck[0].go_on.set()
    wait_until(lambda: lane.busy == 3, "one thread has ended")
    assert started(works) == 1 and lane.queued == 1
    let_go(lane, stuck + works)
    assert_width(lane)


def test_as_many_are_replaced_as_the_lane_has_threads(lane: Lane) -> None:
    stuck = submit(lane, 3)
    wait_until(lambda: started(stuck) == 3, "the threads are taken")
    assert all(map(lane.replace, stuck))
    more = submit(lane, 3)
    wait_until(lambda: started(more) == 3, "three spare threads are at work")
    assert not any(map(lane.replace, more))
    assert lane.busy == 6 and lane.free == 0
    # One place has become free for the next that is stuck.
    stuck[0].go_on.set()
    wait_until(lambda: lane.busy == 5, "one has come back")
    assert lane.replace(more[0])
    let_go(lane, stuck + more)
    assert_width(lane)


def test_what_could_not_be_replaced_is_as_soon_as_one_comes_back(lane: Lane) -> None:
    stuck = submit(lane, 3)
    wait_until(lambda: started(stuck) == 3, "the threads are taken")
    assert lane.works() and all(map(lane.replace, stuck)) and lane.works()
    stuck += submit(lane, 3)
    wait_until(lambda: started(stuck) == 6, "three spare threads are at work")
    assert not any(map(lane.replace, stuck[3:])) and not lane.works()
    waiting = submit(lane, 3)
    # The first three come back; those that take their places take over from the three that are still stuck.
    for work in stuck[:3]:
        work.go_on.set()
    wait_until(lambda: started(waiting) == 3, "what waits runs")
    assert lane.works() and lane.busy == 6
    let_go(lane, stuck + waiting)
    assert lane.works()
    assert_width(lane)


def test_replacing_what_has_just_come_back_changes_nothing(lane: Lane) -> None:
    [work] = submit(lane, 1)
    let_go(lane, [work])
    assert lane.replace(work)
    assert_width(lane)


def test_the_width_is_kept_whatever_is_replaced_and_withdrawn_when() -> None:
    lane = Lane("stress", threads=4, queue=10_000)
    generator = random.Random(1)
    lock = threading.Lock()
    running = most = 0

    class Brief:
        client = ""

        def __init__(self) -> None:
            self.estimate = Estimate(None, "/", "")

        def claim(self) -> bool:
            return True

        def run(self) -> None:
            nonlocal running, most
            with lock:
                running += 1
                most = max(most, running)
            go_on.wait(generator.random() / 2000)
            with lock:
                running -= 1

    go_on = threading.Event()
    jobs: list[Brief] = []
    for _ in range(4000):
        jobs.append(Brief())
        queue_job(lane, jobs[-1])
        chosen = jobs[-generator.randint(1, min(12, len(jobs)))]
        if generator.random() < 0.5:
            lane.replace(chosen)
        else:
            lane.withdraw(chosen)
        assert lane.queued >= 0 and lane.free >= 0
    go_on.set()
    wait_until(lambda: lane.busy == 0, "all have run")
    assert most <= 2 * 4
    assert running == lane.queued == 0
    assert_width(lane)


def path_in_lane(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [threading.current_thread().name.encode()]


def test_the_first_lane_that_matches_is_taken_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    lanes = [
        Lane("daily", "/reports/daily*", threads=1),
        Lane("reports", "/reports/*", threads=1),
        Lane("short", "/?", threads=1),
        Lane("never", "/reports/daily", threads=1),
    ]
    expected = {
        "/reports/daily/1": "daily",
        "/reports/daily": "daily",
        "/reports/weekly?from=/reports/daily": "reports",
        "/reports": "default",
        "/a": "short",
        "/ab": "default",
    }
    with caplog.at_level("INFO", "tornado.access"), BridgeThread(path_in_lane, threads=1, lanes=lanes) as server:
        for path, name in expected.items():
            assert server.request(path=path)[1].decode().startswith(f"threadbridge-{name}_")
    lines = "\n".join(record.getMessage() for record in caplog.records if record.name == "tornado.access")
    assert re.findall(r" lane=(\S+) .* ending=(\S+)", lines, re.MULTILINE) == [
        (name, "done") for name in expected.values()
    ]


@pytest.mark.parametrize(
    ("target", "lane"),
    [
        ("/sleep", "slow"),
        ("/sleep?%2F", "slow"),
        ("/%73leep", "slow"),
        ("/%73%6C%65%65%70?x=1", "slow"),
        ("/caf%C3%A9/1", "cafe"),
        # These are other paths for the application too: it is asked for what is in PATH_INFO.
        ("//sleep", "default"),
        ("/x/../sleep", "default"),
        ("/%2573leep", "default"),
        ("/SLEEP", "default"),
        ("/?/sleep", "default"),
    ],
)
def test_a_lane_is_chosen_by_the_path_that_the_application_sees(target: str, lane: str) -> None:
    def app(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [threading.current_thread().name.encode()]

    lanes = [Lane("slow", "/sleep", threads=1), Lane("cafe", "/caf\u00e9/*", threads=1)]
    with BridgeThread(app, threads=1, lanes=lanes) as server:
        assert server.request(path=target)[1].startswith(f"threadbridge-{lane}_".encode())


def test_a_closed_lane_has_room_for_nothing() -> None:
    lane = Lane("a", threads=1)
    assert lane.has_room(Work()) and lane.has_room_for(Work())
    lane.close()
    assert not lane.has_room(Work()) and not lane.has_room_for(Work()) and lane.displace(Work()) is None
