"""What logs and metrics say of scheduling by cost: the class, the prediction, and the two ways to be wrong."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from wsgiref.types import StartResponse, WSGIEnvironment

import pytest

from tests.admin.test_metrics import Samples, metrics_of
from tests.support.inprocess import BridgeThread, wait_until
from tests.support.records import record
from threadbridge import Lane
from threadbridge.telemetry.access_log import AccessLines
from threadbridge.telemetry.record import Record
from threadbridge.telemetry.slow_log import SlowRequest

# So many requests make a route known, whatever the first ones have cost.
MANY = 8
# Beside so many short requests, a few that take 0.3 s are long.
MOST = 120


class Pages:
    """/page answers at once, /report after 0.3 s; with ``held``, both when the test says so."""

    def __init__(self) -> None:
        self.held = False
        self.entered = threading.Semaphore(0)
        self.go_on = threading.Semaphore(0)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        if self.held:
            self.entered.release()
            assert self.go_on.acquire(timeout=20)
        elif environ["PATH_INFO"] == "/report":
            threading.Event().wait(0.3)
        start_response("200 OK", [("Content-Type", "text/plain")])
        return []


@pytest.fixture
def pages() -> Pages:
    return Pages()


@pytest.fixture
def records() -> list[Record]:
    return []


@pytest.fixture
def server(pages: Pages, records: list[Record]) -> Iterator[BridgeThread]:
    with BridgeThread(pages, threads=4, lanes=[Lane("own", "/own", threads=1)]) as server:
        server.bridge.telemetry.subscribe(records.extend)
        yield server


def ask(server: BridgeThread, path: str, records: list[Record], times: int = 1) -> Record:
    """Send requests one after the other, and return the record of the last."""
    for _ in range(times):
        count = len(records)
        assert server.request(path=path)[0].status == 200
        wait_until(lambda: len(records) > count and server.bridge.lanes[-1].busy == 0, "it is over")  # noqa: B023
    return records[-1]


def show_that_reports_are_long(server: BridgeThread, records: list[Record]) -> Record:
    for _ in range(MOST):
        server.request(path="/page")
    return ask(server, "/report", records, 3)


def test_requests_are_recorded_in_the_class_in_which_they_ran(server: BridgeThread, records: list[Record]) -> None:
    assert ask(server, "/page", records).cost_class == "unknown"
    page = ask(server, "/page", records, MANY)
    assert (page.cost_class, page.outgrown, page.overestimated) == ("short", False, False)
    assert 0 < page.expected < 0.05
    report = show_that_reports_are_long(server, records)
    assert (report.cost_class, report.outgrown) == ("long", False)
    assert 0.3 <= report.expected < 2
    assert ask(server, "/own", records).cost_class == ""


def test_a_lane_in_which_clients_take_turns_has_no_classes(pages: Pages, records: list[Record]) -> None:
    with BridgeThread(pages, threads=1, schedule="fair") as server:
        server.bridge.telemetry.subscribe(records.extend)
        assert ask(server, "/page", records, MANY).cost_class == ""
        samples = metrics_of(server)
        assert list(samples.all("threadbridge_request_wait_by_class_seconds_count")) == []
        assert samples("kept_threads", lane="default") == 0


def counts(samples: Samples, name: str) -> dict[str, float]:
    found = samples.all(f"threadbridge_request_{name}_by_class_seconds_count")
    return {labels["class"]: value for labels, value in found if labels["lane"] == "default"}


def test_the_metrics_count_by_class(server: BridgeThread, records: list[Record]) -> None:
    before = metrics_of(server)
    assert counts(before, "run") == {"short": 0, "long": 0, "unknown": 0}
    show_that_reports_are_long(server, records)
    ask(server, "/own", records)
    samples = metrics_of(server)
    expected = {name: sum(each.cost_class == name for each in records) for name in ("short", "long", "unknown")}
    assert samples("kept_threads", lane="default") == server.bridge.lanes[-1].kept == 1
    assert counts(samples, "run") == counts(samples, "wait") == expected
    assert expected["short"] >= MOST / 2 and expected["long"] >= 1
    lanes = {labels["lane"] for labels, _ in samples.all("threadbridge_request_run_by_class_seconds_count")}
    assert lanes == {"default"}


@pytest.mark.parametrize("others", [0, 1])
def test_a_request_that_outgrows_its_estimate_is_recorded_and_counted_once(
    server: BridgeThread, pages: Pages, records: list[Record], others: int
) -> None:
    ask(server, "/page", records, MANY)
    before = metrics_of(server)("requests_outgrown_total", lane="default")
    pages.held = True
    client = server.send(b"GET /page HTTP/1.1\r\nHost: a\r\n\r\n")
    assert pages.entered.acquire(timeout=10)
    threading.Event().wait(0.2)
    pages.held = False
    # While others come it is judged when they do, otherwise at its end.
    for _ in range(others):
        server.request(path="/page")
        assert metrics_of(server)("requests_outgrown_total", lane="default") == before + 1
    pages.go_on.release()
    assert client.recv(1000).startswith(b"HTTP/1.1 200 ")
    client.close()
    wait_until(lambda: any(each.run >= 0.2 for each in records), "it is recorded")
    [late] = [each for each in records if each.run >= 0.2]
    assert (late.cost_class, late.outgrown) == ("short", True)
    wait_until(lambda: server.bridge.lanes[-1].busy == 0, "its thread is free")
    assert metrics_of(server)("requests_outgrown_total", lane="default") == before + 1


def test_a_request_that_turns_out_to_be_short_is_counted(
    server: BridgeThread, pages: Pages, records: list[Record]
) -> None:
    show_that_reports_are_long(server, records)
    pages.held = True
    pages.go_on.release()
    quick = ask(server, "/report", records)
    assert (quick.cost_class, quick.overestimated, quick.outgrown) == ("long", True, False)
    assert metrics_of(server)("requests_overestimated_total", lane="default") == 1


def test_a_pinned_class_is_no_prediction(pages: Pages, records: list[Record]) -> None:
    with BridgeThread(pages, threads=2, long_paths=["/page"]) as server:
        server.bridge.telemetry.subscribe(records.extend)
        pinned = ask(server, "/page", records, MANY)
        assert (pinned.cost_class, pinned.overestimated) == ("long", False)
        assert metrics_of(server)("requests_overestimated_total", lane="default") == 0


def test_early_refusals_are_counted(pages: Pages, records: list[Record]) -> None:
    with BridgeThread(pages, threads=1, queue_timeout=0.2) as server:
        server.bridge.telemetry.subscribe(records.extend)
        ask(server, "/report", records, MANY)
        pages.held = True
        clients = [server.send(b"GET /report HTTP/1.1\r\nHost: a\r\n\r\n") for _ in range(6)]
        lane = server.bridge.lanes[-1]
        wait_until(lambda: lane.refused_early > 0, "one would wait for longer than 0.2 s")
        wait_until(lambda: len(server.bridge.exchanges.open) + lane.refused_early == 6, "all have been admitted or not")
        assert metrics_of(server)("requests_refused_early_total", lane="default") == lane.refused_early
        for _ in range(6):
            pages.go_on.release()
        for client in clients:
            client.close()


def test_for_one_that_would_wait_too_long_no_other_is_refused(pages: Pages, records: list[Record]) -> None:
    with BridgeThread(pages, threads=1, queue=4, queue_timeout=0.9, xheaders=True) as server:
        server.bridge.telemetry.subscribe(records.extend)
        ask(server, "/report", records, MANY)
        records.clear()
        pages.held = True
        lane = server.bridge.lanes[-1]
        connections = []
        for number, client in enumerate("111122", 1):
            head = f"GET /report HTTP/1.1\r\nHost: a\r\nX-Real-IP: 192.0.2.{client}\r\n\r\n"
            connections.append(server.send(head.encode()))
            wait_until(lambda: lane.busy + lane.queued + len(records) == number, "it waits, or is refused")  # noqa: B023
        # The queue is full, the other client has more in it, and the last would wait for four times 0.3 s.
        assert (lane.queued, lane.refused_early) == (4, 1)
        assert [(each.client, each.ending) for each in records] == [("192.0.2.2", "shed")]
        for connection in connections:
            pages.go_on.release()
            connection.close()


def test_logs_have_the_class_and_the_prediction() -> None:
    known = record(cost_class="short", expected=0.0025, changes="committed")
    outgrown = record(cost_class="long", expected=2.5, outgrown=True)
    lines = AccessLines([known, outgrown, record()])
    assert [line.partition("ending=")[2] for line in lines.text.splitlines()] == [
        "done class=short expected=2.5 changes=committed",
        "done class=long expected=2500.0 outgrown=1",
        "done",
    ]
    parsed = [json.loads(line) for line in lines.json.splitlines()]
    assert [(each["class"], each["expected_ms"], each["outgrown"]) for each in parsed] == [
        ("short", 2.5, False),
        ("long", 2500.0, True),
        ("", 0.0, False),
    ]
    assert str(SlowRequest(outgrown, False)).endswith(" statements, class long, expected to run 2500.0 ms, outgrown")
    assert str(SlowRequest(record(), False)).endswith(" statements")
