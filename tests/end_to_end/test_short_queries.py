"""Short queries do not wait for long ones, even if only a parameter tells them apart.

As in test_concurrency.py, the same check passes for the bridge and fails without its schedule and for Tornado's own
wrapper, and it rests on the database's process list and on the order of events; no time is measured.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest
import requests

from benchmarks.database import ProcessList
from benchmarks.servers import command
from tests.support.processes import Frontend

# Of fewer than four, none is kept.
CONNECTIONS = 4
# Of the same path: long ones of 3 s, and short ones.
LONG = "/query/?report=wait&seconds=3&format=json"
SHORT = "/query/?report=wait&seconds=0&format=json"
SHORT_ONES = 6
# So many teach the bridge what they cost. The first short one costs more than others: its connection is opened.
SHORT_LESSONS, LONG_LESSONS = 20, 3


@dataclass(frozen=True)
class Observation:
    """How many clients had been answered before the process list was read, and which long queries it showed."""

    long_answered: int
    short_answered: int
    running: frozenset[int]


@dataclass
class Recording:
    """What happened: the observations in their order, and the statuses of all answers."""

    observations: list[Observation] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)


def get(url: str) -> int:
    return requests.get(url, timeout=60).status_code


def warm_up(frontend: Frontend) -> None:
    """Ask for each kind, so that the bridge knows both."""
    for _ in range(SHORT_LESSONS):
        assert get(frontend.url + SHORT) == 200
    with ThreadPoolExecutor(LONG_LESSONS) as clients:
        assert list(clients.map(get, [frontend.url + LONG] * LONG_LESSONS)) == [200] * LONG_LESSONS
    assert get(frontend.url + SHORT) == 200


def record(frontend: Frontend, process_list: ProcessList, *, busy: int) -> Recording:
    """Ask for as many long ones as there are connections and, as soon as so many run as may, for short ones."""
    recording = Recording()
    # Another test may have left a query behind, which ends by itself.
    strangers = {query.query_id for query in process_list.sleeping()}
    with ThreadPoolExecutor(CONNECTIONS + SHORT_ONES) as clients:
        long = [clients.submit(get, frontend.url + LONG) for _ in range(CONNECTIONS)]
        short: list[Future[int]] = []
        while not all(client.done() for client in (*long, *short)):
            # In this order: an answer that is counted here has arrived before the list is read.
            short_answered = sum(client.done() for client in short)
            long_answered = sum(client.done() for client in long)
            running = frozenset(query.query_id for query in process_list.sleeping() if query.seconds) - strangers
            recording.observations.append(Observation(long_answered, short_answered, running))
            if not short and len(running) == busy:
                short = [clients.submit(get, frontend.url + SHORT) for _ in range(SHORT_ONES)]
            time.sleep(0.01)
        recording.statuses = [client.result() for client in (*long, *short)]
    return recording


def check_all_succeed(recording: Recording) -> None:
    assert recording.statuses == [200] * (CONNECTIONS + SHORT_ONES)


def check_short_ones_do_not_wait_for_long_ones(recording: Recording, busy: int) -> None:
    first = next(observation for observation in recording.observations if len(observation.running) == busy)
    assert any(
        observation.short_answered == SHORT_ONES
        and observation.long_answered == 0
        and observation.running == first.running
        for observation in recording.observations
    ), "the short ones were not answered before a long one had ended"


@pytest.fixture(scope="module")
def settings(mariadb: dict[str, str]) -> dict[str, str]:
    return {**mariadb, "MYAPPLICATION_POOL_SIZE": str(CONNECTIONS), "MYAPPLICATION_DIAGNOSTICS": "1"}


def record_bridge(
    arguments: Sequence[str], settings: dict[str, str], process_list: ProcessList, busy: int
) -> Recording:
    with Frontend(("run.py", "--port={port}", *arguments), env=settings) as frontend:
        warm_up(frontend)
        return record(frontend, process_list, busy=busy)


def test_bridge_answers_short_ones_while_long_ones_run(settings: dict[str, str], process_list: ProcessList) -> None:
    # One connection is kept for short ones.
    busy = CONNECTIONS - 1
    recording = record_bridge([], settings, process_list, busy)
    check_all_succeed(recording)
    check_short_ones_do_not_wait_for_long_ones(recording, busy)
    assert max(len(observation.running) for observation in recording.observations) == busy


def test_without_the_schedule_short_ones_wait(settings: dict[str, str], process_list: ProcessList) -> None:
    recording = record_bridge(["--schedule=fair"], settings, process_list, CONNECTIONS)
    check_all_succeed(recording)
    with pytest.raises(AssertionError, match="the short ones were not answered"):
        check_short_ones_do_not_wait_for_long_ones(recording, CONNECTIONS)


def test_behind_wsgicontainer_with_executor_short_ones_wait(
    settings: dict[str, str], process_list: ProcessList
) -> None:
    with Frontend(command("executor", "myapplication:app", CONNECTIONS), env=settings) as frontend:
        recording = record(frontend, process_list, busy=CONNECTIONS)
    check_all_succeed(recording)
    with pytest.raises(AssertionError, match="the short ones were not answered"):
        check_short_ones_do_not_wait_for_long_ones(recording, CONNECTIONS)
