"""How much more a bridge can take: the weight, and the report in the headers of responses."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Iterator
from wsgiref.types import StartResponse, WSGIEnvironment

import pytest

from tests.support.inprocess import BridgeThread, queue_job, wait_until
from tests.support.raw_server import RawServer, answering
from tests.support.schedule_model import Job, route_that_costs
from threadbridge import Bridge, HTTPServer, Lane
from threadbridge.crossing.cost_cells import Cell, scaled
from threadbridge.crossing.costs import Costs
from threadbridge.crossing.load import LoadReport, weight
from threadbridge.crossing.pace import Usual
from threadbridge.crossing.schedule import Schedule

REPORT = re.compile(r"TEXT application_utilization=([0-9.]+),rps_fractional=([0-9.]+),eps=([0-9.]+)").fullmatch


class Application:
    """Requests for /slow wait for the gate."""

    def __init__(self) -> None:
        self.gate = threading.Event()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        if environ["PATH_INFO"] == "/slow":
            assert self.gate.wait(30)
        start_response("500 No" if environ["PATH_INFO"] == "/fails" else "200 OK", [("Content-Type", "text/plain")])
        return [b"done"]


class FromFar(HTTPServer):
    """Takes its peers for others than they are: all tests come from loopback."""

    addresses: Iterator[str]

    def _handle_connection(self, connection: socket.socket, address: object) -> None:
        super()._handle_connection(connection, (next(self.addresses), 1))


def make_server(*addresses: str) -> type[HTTPServer]:
    return type("Server", (FromFar,), {"addresses": iter(addresses)})


def reports(server: BridgeThread, path: str = "/") -> list[str]:
    response, _ = server.request(path=path)
    return response.headers.get_all("endpoint-load-metrics") or []


def figures(server: BridgeThread, path: str = "/") -> tuple[float, ...]:
    [report] = reports(server, path)
    match = REPORT(report)
    assert match is not None, report
    return tuple(map(float, match.groups()))


def general(bridge: Bridge) -> int:
    return weight(bridge.lane_choice.general, bridge.shared.costs)


@pytest.fixture
def costs() -> Costs:
    return Costs()


def waiting(lane: Lane, route: Cell | None, costs: Costs | None, count: int) -> None:
    """Put requests into the queue, which no thread takes: nobody wakes the lane."""
    for _ in range(count):
        job = Job(route, "client")
        if costs is not None:
            costs.estimate(job.estimate)
        assert lane.has_room(job)
        lane.put(job)


def test_short_requests_that_wait_lower_the_weight(costs: Costs) -> None:
    lane = Lane("one", threads=4, costs=costs)
    assert weight([lane], None) == 100
    short = route_that_costs(0.04)
    waiting(lane, short, costs, 10)
    # 10 x 0.04 s / 4 threads: as long as halves it.
    assert weight([lane], None) == 50
    waiting(lane, short, costs, 30)
    assert weight([lane], None) == 20
    # The lane with the least counts.
    assert weight([Lane("other", threads=4), lane, Lane("idle", threads=4)], None) == 20


def test_a_slow_host_has_less_weight(costs: Costs) -> None:
    lane, usual, now = Lane("one", threads=4, costs=costs), Usual(), 1000.0
    for seconds, weights in ((0.01, range(100, 101)), (0.02, range(50, 90)), (0.04, range(1, 2))):
        for _ in range(100):
            costs.pace.add(usual, scaled(seconds), now - 0.1, now)
            now += 0.1
        assert weight([lane], costs) in weights
    assert weight([lane], None) == 100


def test_long_requests_that_wait_do_not(costs: Costs) -> None:
    lane = Lane("one", threads=4, costs=costs)
    waiting(lane, route_that_costs(5.0), costs, 20)
    assert weight([lane], None) == 100


def test_where_costs_do_not_matter_all_that_wait_do() -> None:
    lane = Lane("one", threads=1)
    gate = threading.Event()

    class Slow(Job):
        def run(self) -> None:
            assert gate.wait(0.2) is False

    queue_job(lane, Slow(None, "client"))
    wait_until(lambda: lane.busy == 0, "what a request takes is known")
    waiting(lane, None, None, 3)
    # 3 x 0.2 s, if the machine is not too busy.
    assert 5 <= weight([lane], None) <= 15
    lane.close()


def test_what_runs_for_long_holds_its_thread_and_short_ones_do_not(costs: Costs) -> None:
    schedule = Schedule(4, costs)

    def run(route: Cell | None, now: float) -> None:
        job = Job(route, "client")
        costs.estimate(job.estimate)
        schedule.file(job)
        schedule.put(job, now)
        taken = schedule.take(now)
        assert taken is job
        schedule.start(job, now)

    run(route_that_costs(0.01), 100.0)
    run(None, 100.0)
    assert schedule.held(100.0) == 0
    run(route_that_costs(5.0), 100.0)
    # Known to be long: at once.
    assert schedule.held(100.0) == 1
    assert schedule.held(100.49) == 1
    # Whatever was expected.
    assert schedule.held(100.5) == 3


def test_threads_that_are_stuck_are_none_that_can_run() -> None:
    app = Application()
    with BridgeThread(app, threads=2) as server:
        clients = [server.send(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n") for _ in range(2)]
        wait_until(lambda: general(server.bridge) == 1, "both threads are held, and it is not 0: HAProxy would drain")
        app.gate.set()
        wait_until(lambda: general(server.bridge) == 100, "both are free")
        for client in clients:
            client.close()


def test_without_the_setting_nothing_is_reported() -> None:
    with BridgeThread(Application(), threads=2) as server:
        assert reports(server) == []


def test_the_report_has_what_envoy_computes_weights_from() -> None:
    app = Application()
    with BridgeThread(app, threads=4, load_report=True, lanes=[Lane("own", "/own*", threads=1)]) as server:
        utilization, rate, errors = figures(server)
        assert 0 < utilization < 0.1 and rate > 0 and errors == 0
        wait_until(lambda: figures(server, "/fails")[2] > 0, "errors are counted")
        wait_until(lambda: figures(server)[0] < 0.1, "short requests take next to nothing")
        clients = [server.send(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n") for _ in range(3)]
        wait_until(lambda: server.bridge.lanes[-1].busy == 3, "they run")
        began = time.monotonic()
        wait_until(lambda: general(server.bridge) == 25, "a quarter of the threads is left")
        app.gate.set()
        for client in clients:
            assert client.recv(65536).startswith(b"HTTP/1.1 200")
            client.close()
        took = 3 * (time.monotonic() - began)
        wait_until(lambda: general(server.bridge) == 100, "all threads are free")
        # Of four threads, over two seconds; some of it is forgotten already.
        wait_until(lambda: figures(server)[0] > 0.4 * took / 4 / 2, "their time is counted")


def test_less_weight_is_more_utilization() -> None:
    lanes = [Lane("one", threads=4)]
    report = LoadReport(lanes, None)
    gate = threading.Event()

    class Slow(Job):
        def run(self) -> None:
            assert gate.wait(30)

    def utilization() -> float:
        # A second has passed.
        report._looked_at = time.monotonic() - 1.0
        match = REPORT(report.line_after(200, 0.1).decode().strip().partition(": ")[2])
        assert match is not None
        return float(match[1])

    for _ in range(30):
        utilization()
    # 0.1 s for each response, one a second, of four threads.
    assert utilization() == pytest.approx(0.025, rel=0.05)
    for _ in range(3):
        queue_job(lanes[0], Slow(None, "client"))
    wait_until(lambda: weight(lanes, None) == 25, "three threads are held")
    assert utilization() == pytest.approx(0.1, rel=0.05)
    queue_job(lanes[0], Slow(None, "client"))
    wait_until(lambda: weight(lanes, None) == 1, "all are")
    assert utilization() == pytest.approx(0.5, rel=0.05)
    gate.set()
    lanes[0].close()


def test_the_bridge_s_own_responses_have_it_too() -> None:
    app = Application()
    with BridgeThread(app, threads=1, queue=0, load_report=True) as server:
        client = server.send(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n")
        wait_until(lambda: server.bridge.lanes[0].busy == 1, "it runs")
        response, _ = server.request()
        assert response.status == 503 and REPORT(response.headers["endpoint-load-metrics"])
        app.gate.set()
        client.close()


def test_only_trusted_peers_get_it() -> None:
    peers = ("192.0.2.7", "10.0.0.2", "::1", "192.0.2.7")
    settings = {"load_report": True, "trusted_proxies": ["10.0.0.0/8"]}
    with BridgeThread(Application(), make_server(*peers), threads=2, **settings) as server:
        assert [len(reports(server)) for _ in peers] == [0, 1, 1, 0]


def test_a_client_behind_a_trusted_proxy_is_not_the_peer() -> None:
    settings = {"load_report": True, "xheaders": True, "trusted_proxies": ["10.0.0.2"]}
    with BridgeThread(Application(), make_server("10.0.0.2", "192.0.2.7"), threads=2, **settings) as server:
        for has_one in (True, False):
            response, _ = server.request(headers={"X-Real-IP": "127.0.0.1" if not has_one else "192.0.2.9"})
            assert ("endpoint-load-metrics" in response.headers) is has_one


def test_that_of_another_host_is_not_passed_on() -> None:
    theirs = b"HTTP/1.1 200 OK\r\nendpoint-load-metrics: TEXT cpu_utilization=1\r\nContent-Length: 2\r\n\r\nok"
    with RawServer(answering(theirs)) as far:
        for own in (False, True):
            lanes = [Lane("far", "/far", upstream=[far.url])]
            with BridgeThread(Application(), threads=1, lanes=lanes, load_report=own) as near:
                assert len(reports(near, "/far")) == own
                assert all(map(REPORT, reports(near, "/far")))
