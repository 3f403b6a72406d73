"""The regression test of the whole project: slow queries overlap, and nobody waits for longer than they must.

The same checks pass for the bridge and fail for Tornado's own wrappers. They rest on the database's process list and
on the order of events; no time is measured.
"""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest
import requests

from benchmarks.database import ProcessList
from benchmarks.servers import command
from tests.support.processes import Frontend

CONNECTIONS = 3
REQUESTS = 3 * CONNECTIONS


@dataclass(frozen=True)
class Observation:
    """What the clients had been answered before the process list was read, and which queries it showed."""

    answered: int
    page_answered: bool
    running: frozenset[int]


@dataclass
class Recording:
    """What happened while the requests overlapped: the observations in their order, and each answer's status.

    ``busy`` is how many queries keep the server busy; the page was asked for as soon as so many ran.
    """

    busy: int
    observations: list[Observation] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)


def record(frontend: Frontend, process_list: ProcessList, *, seconds: float, busy: int = CONNECTIONS) -> Recording:
    """Fire the slow queries at once, and ask for the page as soon as the server is busy."""
    recording = Recording(busy)

    def get(path: str) -> int:
        return requests.get(frontend.url + path, timeout=60).status_code

    # Another test may have left a query behind, which ends by itself.
    strangers = {query.query_id for query in process_list.sleeping()}
    with ThreadPoolExecutor(REQUESTS + 1) as clients:
        slow = [clients.submit(get, f"/query/?report=wait&seconds={seconds}&format=json") for _ in range(REQUESTS)]
        page: Future[int] | None = None
        while not all(client.done() for client in slow):
            # In this order: an answer that is counted here has arrived before the list is read.
            answered = sum(client.done() for client in slow)
            page_answered = page is not None and page.done()
            running = frozenset(query.query_id for query in process_list.sleeping()) - strangers
            recording.observations.append(Observation(answered, page_answered, running))
            if page is None and len(running) == busy:
                page = clients.submit(get, "/")
            time.sleep(0.01)
        if page is not None:
            assert page.result() == 200
        recording.statuses = [client.result() for client in slow]
    return recording


def check_all_succeed(recording: Recording) -> None:
    assert recording.statuses == [200] * REQUESTS
    queries = frozenset[int]().union(*(observation.running for observation in recording.observations))
    assert len(queries) == REQUESTS, f"{len(queries)} queries ran for {REQUESTS} requests"


def check_every_connection_is_used_and_no_more(recording: Recording) -> None:
    most = max(len(observation.running) for observation in recording.observations)
    assert most == CONNECTIONS, f"at most {most} queries ran at once on {CONNECTIONS} connections"


def check_page_does_not_wait_for_queries(recording: Recording) -> None:
    busy = [observation for observation in recording.observations if len(observation.running) == recording.busy]
    assert any(
        observation.page_answered and observation.answered == 0 and observation.running == busy[0].running
        for observation in busy
    ), "the page was not answered while the first queries kept the server busy"


def check_median_does_not_wait_for_queue(recording: Recording) -> None:
    median = REQUESTS // 2 + 1
    assert any(
        observation.answered >= median and len(observation.running) == CONNECTIONS
        for observation in recording.observations
    ), "the median request waited until the queue was empty"


@pytest.fixture(scope="module")
def settings(mariadb: dict[str, str]) -> dict[str, str]:
    return {**mariadb, "MYAPPLICATION_POOL_SIZE": str(CONNECTIONS), "MYAPPLICATION_DIAGNOSTICS": "1"}


@pytest.fixture(scope="module")
def bridge(settings: dict[str, str], process_list: ProcessList) -> Recording:
    with Frontend(env=settings) as frontend:
        return record(frontend, process_list, seconds=2)


def test_bridge_answers_all_requests(bridge: Recording) -> None:
    check_all_succeed(bridge)


def test_bridge_uses_every_connection_and_no_more(bridge: Recording) -> None:
    check_every_connection_is_used_and_no_more(bridge)


def test_bridge_answers_page_while_every_connection_is_busy(bridge: Recording) -> None:
    check_page_does_not_wait_for_queries(bridge)


def test_bridge_answers_median_while_others_wait_for_theirs(bridge: Recording) -> None:
    check_median_does_not_wait_for_queue(bridge)


def record_wrapper(server: str, settings: dict[str, str], process_list: ProcessList, busy: int) -> Recording:
    with Frontend(command(server, "myapplication:app", CONNECTIONS), env=settings) as frontend:
        return record(frontend, process_list, seconds=0.5, busy=busy)


def test_wsgicontainer_runs_one_query_at_a_time(settings: dict[str, str], process_list: ProcessList) -> None:
    recording = record_wrapper("wsgicontainer", settings, process_list, busy=1)
    check_all_succeed(recording)
    with pytest.raises(AssertionError, match="at most 1 queries ran at once"):
        check_every_connection_is_used_and_no_more(recording)
    with pytest.raises(AssertionError, match="the page was not answered"):
        check_page_does_not_wait_for_queries(recording)
    with pytest.raises(AssertionError, match="the median request waited"):
        check_median_does_not_wait_for_queue(recording)


def test_wsgicontainer_with_executor_keeps_answers_back(settings: dict[str, str], process_list: ProcessList) -> None:
    recording = record_wrapper("executor", settings, process_list, busy=CONNECTIONS)
    check_all_succeed(recording)
    check_every_connection_is_used_and_no_more(recording)
    with pytest.raises(AssertionError, match="the page was not answered"):
        check_page_does_not_wait_for_queries(recording)
    with pytest.raises(AssertionError, match="the median request waited"):
        check_median_does_not_wait_for_queue(recording)
