"""What the loop and the workers share, while both use it: nothing is lost, counted twice, or done twice."""

from __future__ import annotations

import asyncio
import random
import threading
from collections import Counter
from functools import partial
from typing import Any, cast

from tornado.httputil import HTTPHeaders, RequestStartLine

from tests.support.inprocess import wait_until
from tests.support.racing import race, rounds
from threadbridge import Lane
from threadbridge.crossing.cancellation import Cancellation
from threadbridge.crossing.costs import Costs
from threadbridge.crossing.current import TrackedRequest
from threadbridge.crossing.estimate import Estimate
from threadbridge.crossing.exchange import Exchange, Shared
from threadbridge.crossing.hop import Hop
from threadbridge.crossing.outgoing_response import OutgoingResponse
from threadbridge.crossing.response_body import Channel, ClientDisconnected
from threadbridge.crossing.routes import Routes
from threadbridge.crossing.spool import Spool
from threadbridge.crossing.states import State
from threadbridge.http.limits import Memory

# What each of them does before the next look at the clock, and how many threads do it.
BATCH = 20
THREADS = 4


def test_every_post_is_delivered_once_in_order_and_without_another_post() -> None:
    delivered: dict[int, list[int]] = {me: [] for me in range(THREADS)}

    numbers = rounds()
    number = -1

    def next_round() -> None:
        nonlocal number
        number = next(numbers, -1)

    async def deliver() -> None:
        hop = Hop(asyncio.get_running_loop())
        # All have been answered: the next post of another worker must not make up for a lost wake-up.
        together = threading.Barrier(THREADS, next_round, timeout=30)

        def work(me: int) -> None:
            answered = threading.Semaphore(0)

            def arrive(number: int) -> None:
                delivered[me].append(number)
                answered.release()

            while together.wait() >= 0 and number >= 0:
                hop.post(arrive, number)
                assert answered.acquire(timeout=10), "a post has not been delivered"

        await asyncio.to_thread(race, *(partial(work, me) for me in range(THREADS)))

    asyncio.run(deliver())
    for found in delivered.values():
        assert found == list(range(len(found))) and found


class CountedJob:
    """A job that counts how often it ran, and how many of its kind run at once."""

    at_work = 0
    most_at_work = 0
    lock = threading.Lock()

    def __init__(self, client: str) -> None:
        self.client = client
        self.estimate = Estimate(None, "/", client)
        self.ran = 0

    def claim(self) -> bool:
        return True

    def run(self) -> None:
        with self.lock:
            CountedJob.at_work += 1
            CountedJob.most_at_work = max(CountedJob.most_at_work, CountedJob.at_work)
        self.ran += 1
        with self.lock:
            CountedJob.at_work -= 1


def test_each_job_runs_once_or_is_withdrawn() -> None:
    CountedJob.at_work = CountedJob.most_at_work = 0
    lane = Lane("test", threads=THREADS, queue=1000)
    jobs: list[CountedJob] = []
    withdrawn: set[int] = set()

    def loop_side() -> None:
        choose = random.Random(1)
        for _ in rounds():
            batch = [CountedJob(f"client {choose.randrange(5)}") for _ in range(BATCH)]
            jobs.extend(batch)
            for job in batch:
                lane.put(job)
                lane.wake()
                other = choose.choice(batch)
                if lane.withdraw(other):
                    assert id(other) not in withdrawn
                    withdrawn.add(id(other))
            lane.wake()
            wait_until(lambda: lane.busy == 0, "the batch is done")

    race(loop_side, lambda: [lane.spare() for _ in rounds()])
    assert (lane.queued, lane.free) == (0, THREADS)
    assert [job.ran + (id(job) in withdrawn) for job in jobs] == [1] * len(jobs)
    assert 1 <= CountedJob.most_at_work <= THREADS and CountedJob.at_work == 0
    lane.close()
    lane.join()


def spool() -> Spool:
    return Spool(2**30, Memory(), Memory())


def test_only_one_ending_wins() -> None:
    for _ in rounds():
        responses = [OutgoingResponse(cast(Any, None), spool()) for _ in range(BATCH)]
        winners: list[list[int]] = [[], []]

        def end(me: int, ending: State, responses: list[Any] = responses, winners: Any = winners) -> None:
            winners[me] += [number for number, each in enumerate(responses) if each.move(ending) is not None]

        race(partial(end, 0, State.SHED), partial(end, 1, State.ABANDONED))
        assert sorted(winners[0] + winners[1]) == list(range(BATCH))


def exchange(shared: Shared) -> Exchange:
    made = Exchange(shared, cast(Any, None), RequestStartLine("GET", "/", "HTTP/1.1"), HTTPHeaders())
    made.running = TrackedRequest(made.id, None)
    made.estimate = Estimate(None, "/", "")
    return made


def test_a_lane_that_adopts_a_request_gets_its_thread_back() -> None:
    routes = Routes(Costs())
    # In the application's call, since only the end of the request matters.
    together = threading.Barrier(2, timeout=30)

    def call(each: Exchange) -> None:
        together.wait()

    shared = Shared(spool(), routes, None, Cancellation("none"), call, lambda each: None, None)
    shared.hop = Hop(asyncio.new_event_loop())
    adopting = Lane("adopting", threads=BATCH, queue=0)
    for _ in rounds():
        exchanges = [exchange(shared) for _ in range(BATCH)]

        def adopt(exchanges: list[Exchange] = exchanges) -> None:
            for each in exchanges:
                together.wait()
                each.adopt_by(adopting)

        def run(exchanges: list[Exchange] = exchanges) -> None:
            for each in exchanges:
                each.run()

        race(adopt, run)
        assert adopting.free == BATCH
    shared.hop.loop.close()


def test_memory_and_disk_space_are_given_back() -> None:
    of_all = spool()

    def use(me: int) -> None:
        client = f"client {me % 2}"
        for _ in rounds():
            for size in range(1, BATCH):
                of_all.memory.add(size)
                assert of_all.reserve(size, client)
            for size in range(1, BATCH):
                of_all.memory.add(-size)
                of_all.release(size, client)

    race(*(partial(use, me) for me in range(THREADS)))
    assert of_all.memory.taken == of_all.taken == 0
    assert of_all.reserve(2**28, "client 0")


def test_costs_are_counted_once_while_others_estimate() -> None:
    costs = Costs()
    routes = Routes(costs)
    learned = [0] * THREADS

    def learn(me: int) -> None:
        choose = random.Random(me)
        for _ in rounds():
            for _ in range(BATCH):
                route = routes.find("GET", f"/{choose.choice('abc')}")
                estimate = Estimate(route.cost, f"/?x={choose.randrange(50)}&y={choose.randrange(3)}", "")
                costs.estimate(estimate)
                costs.learn(estimate, choose.choice((0.001, 0.2, 3.0)))
                learned[me] += 1

    race(*(partial(learn, me) for me in range(THREADS)))
    assert costs.learned == sum(learned) == sum(route.cost.count for _, _, route in routes.all())
    assert costs.cells == sum(route.cost.size() for _, _, route in routes.all())


def test_one_probe_of_a_route_at_a_time() -> None:
    routes = Routes(Costs())
    route = routes.find("GET", "/")
    began: list[int] = []

    def probe(me: int) -> None:
        for _ in rounds():
            if routes.begin_probe(route):
                began.append(me)
                assert began == [me], "two requests probe the same route"
                began.remove(me)
                routes.never_ran(route, was_probe=True)

    race(*(partial(probe, me) for me in range(THREADS)))


def test_a_callback_is_called_once_at_most_and_never_after_the_request() -> None:
    called = Counter[int]()
    for _ in rounds():
        requests = [TrackedRequest(str(number), None) for number in range(BATCH)]
        left = [False] * BATCH
        late: list[int] = []
        together = threading.Barrier(2, timeout=30)

        def serve(
            requests: list[TrackedRequest] = requests,
            left: list[bool] = left,
            late: list[int] = late,
            together: threading.Barrier = together,
        ) -> None:
            for number, request in enumerate(requests):
                calls: list[int] = []

                def stop(number: int = number, calls: list[int] = calls) -> None:
                    calls.append(number)
                    if left[number]:
                        late.append(number)

                together.wait()
                request.on_cancel(stop)
                request.leave()
                left[number] = True
                called[len(calls)] += 1

        def cancel(requests: list[TrackedRequest] = requests, together: threading.Barrier = together) -> None:
            for request in requests:
                together.wait()
                request.cancel()

        race(serve, cancel)
        assert not late
    assert set(called) <= {0, 1}


def test_a_streamed_body_arrives_whole() -> None:
    of_all = spool()
    woken = threading.Semaphore(0)
    channel = Channel(of_all, "client", woken.release, is_wanted=lambda: False, cut=lambda: None)
    sent = 0
    received: list[bytes] = []

    def write() -> None:
        nonlocal sent
        for number in rounds():
            channel.put(b"%08d" % number * 100)
            sent += 1
        channel.complete()

    def read() -> None:
        while (taken := channel.take()) != ():
            if taken is None:
                assert woken.acquire(timeout=30), "the reader is not told of what has come"
            elif callable(taken):
                received.append(taken())
            else:
                received.extend(map(bytes, cast(Any, taken)))

    race(write, read)
    assert b"".join(received) == b"".join(b"%08d" % number * 100 for number in range(sent))
    channel.close()
    assert of_all.unread.taken == 0


def test_a_writer_learns_that_the_client_has_left() -> None:
    for _ in rounds():
        channels = [Channel(spool(), "client", lambda: None, lambda: False, lambda: None) for _ in range(20)]
        refused: list[int] = []

        def write(channels: list[Channel] = channels, refused: list[int] = refused) -> None:
            for number, channel in enumerate(channels):
                try:
                    while True:
                        channel.put(b"x" * 100)
                except ClientDisconnected:
                    refused.append(number)

        def close(channels: list[Channel] = channels) -> None:
            for channel in channels:
                while channel.take() is None:
                    pass
                channel.close()

        race(write, close)
        assert refused == list(range(len(channels)))
