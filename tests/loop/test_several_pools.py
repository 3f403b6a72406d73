"""An application with several pools: each has a lane of its own, and its overload keeps no other's requests waiting."""

from __future__ import annotations

import http.client
import random
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any
from wsgiref.types import StartResponse, WSGIEnvironment

import MySQLdb
import pytest
from dbutils.pooled_db import PooledDB

from tests.support.databases import Witness, connect_settings
from tests.support.inprocess import BridgeThread, reset, wait_until
from threadbridge import Bridge, Lane
from threadbridge.crossing.costs import Costs
from threadbridge.crossing.routes import Routes

WIDE, NARROW = 4, 2
# What holds a connection until the test, which has the lock, gives it back.
HOLD = "SELECT GET_LOCK('reports', 30), RELEASE_LOCK('reports')"


class Site:
    """An application over two pools: /shop… asks the first for a connection, /report… the second, /both… both.

    /extra… asks one that the application makes by itself. With ``hold``, the last query holds its connection until the
    test lets go of the lock. Each answers with the lane whose thread ran it.
    """

    def __init__(self, mariadb: dict[str, str]) -> None:
        self.settings = connect_settings(mariadb)
        self.shop = self.make(WIDE)
        self.reports = self.make(NARROW)
        self.extra: Any = None

    def make(self, connections: int) -> Any:
        return PooledDB(MySQLdb, maxconnections=connections, blocking=True, **self.settings)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        path = environ["PATH_INFO"]
        pools = {
            "shop": [self.shop],
            "report": [self.reports],
            "both": [self.shop, self.reports],
            "extra": [self.extra],
        }
        for pool in pools.get(path.split("/")[1], []):
            is_last = pool is not self.shop or "both" not in path
            with closing(pool.connection()) as connection, closing(connection.cursor()) as cursor:
                cursor.execute(HOLD if "hold" in path and is_last else "DO 1")
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [threading.current_thread().name.removeprefix("threadbridge-").partition("_")[0].encode()]


@pytest.fixture
def site(mariadb: dict[str, str]) -> Iterator[Site]:
    site = Site(mariadb)
    yield site
    for pool in (site.shop, site.reports, site.extra):
        if pool is not None:
            pool.close()


@pytest.fixture
def witness(mariadb: dict[str, str]) -> Iterator[Witness]:
    witness = Witness(mariadb)
    with closing(witness.connection):
        yield witness


def serving(site: Site, **parameters: Any) -> BridgeThread:
    return BridgeThread(site, pool=[site.shop, site.reports], **parameters)


def lane_of(server: BridgeThread, path: str) -> str:
    response, body = server.request("GET", path)
    assert response.status == 200
    return body.decode()


def send(server: BridgeThread, path: str) -> socket.socket:
    return server.send(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())


def answer_of(client: socket.socket) -> tuple[int, str]:
    with client:
        response = http.client.HTTPResponse(client)
        response.begin()
        return response.status, response.read().decode()


def holding(witness: Witness) -> int:
    return sum("GET_LOCK" in sql for sql in witness.running)


def test_each_route_goes_to_the_lane_of_its_pool(site: Site) -> None:
    with serving(site) as server:
        lanes = [(lane.name, lane.threads) for lane in server.bridge.lanes]
        assert lanes == [("quick", 4), ("pool-1", WIDE), ("pool-2", NARROW)]
        assert [lane_of(server, "/page") for _ in range(2)] == ["quick", "quick"]
        assert [lane_of(server, "/shop") for _ in range(3)] == ["quick", "pool-1", "pool-1"]
        assert [lane_of(server, "/report") for _ in range(3)] == ["quick", "pool-2", "pool-2"]
        # A route that asks both goes to the narrower one, in whatever order it asks.
        assert [lane_of(server, "/both") for _ in range(3)] == ["quick", "pool-2", "pool-2"]


def test_one_pool_of_several_may_be_alone(site: Site) -> None:
    bridge = Bridge(site, pool=[site.shop])
    assert [lane.name for lane in bridge.lanes] == ["quick", "pool"]
    bridge.close()


def test_a_request_counts_in_the_lane_of_each_pool_that_it_asks(site: Site, witness: Witness) -> None:
    with serving(site) as server:
        _, shop, reports = server.bridge.lanes
        assert [lane_of(server, "/both/hold") for _ in range(2)] == ["quick", "pool-2"]
        witness.rows("SELECT GET_LOCK('reports', 30)")
        client = send(server, "/both/hold")
        wait_until(lambda: holding(witness) == 1, "it holds a connection")
        wait_until(lambda: (shop.free, reports.free) == (WIDE - 1, NARROW - 1), "it counts in both lanes")
        witness.rows("SELECT RELEASE_LOCK('reports')")
        assert answer_of(client) == (200, "pool-2")
        wait_until(lambda: (shop.free, reports.free) == (WIDE, NARROW), "it counts no more")


def test_requests_that_wait_move_with_their_route(site: Site, witness: Witness) -> None:
    """The route is believed to use the first pool alone, until one of its requests asks the other."""
    second = threading.Event()

    def application(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        if environ["PATH_INFO"] == "/shop" and second.is_set():
            environ["PATH_INFO"] = "/both/hold"
        return site(environ, start_response)

    with BridgeThread(application, pool=[site.shop, site.reports]) as server:
        _, shop, reports = server.bridge.lanes
        assert [lane_of(server, "/shop") for _ in range(2)] == ["quick", "pool-1"]
        witness.rows("SELECT GET_LOCK('reports', 30)")
        second.set()
        clients = [send(server, "/shop") for _ in range(20)]
        wait_until(lambda: len(server.bridge.exchanges.open) == 20, "all have come")
        # All but those that run.
        fewest = 20 - WIDE - NARROW
        wait_until(lambda: shop.queued == 0 and reports.queued >= fewest, "those that waited are in the other lane")
        witness.rows("SELECT RELEASE_LOCK('reports')")
        answers = [answer_of(client) for client in clients]
        assert {status for status, _ in answers} == {200}
        assert sum(lane == "pool-1" for _, lane in answers) <= WIDE


def test_the_overload_of_one_pool_keeps_no_request_of_the_other_waiting(site: Site, witness: Witness) -> None:
    with serving(site) as server:
        assert [lane_of(server, path) for path in ("/shop", "/report/hold", "/shop")] == ["quick", "quick", "pool-1"]
        witness.rows("SELECT GET_LOCK('reports', 30)")
        reports = [send(server, "/report/hold") for _ in range(30)]
        wait_until(lambda: holding(witness) == NARROW, "reports hold all their connections")
        wait_until(lambda: server.bridge.lanes[2].queued == 30 - NARROW, "the others wait")
        with ThreadPoolExecutor(WIDE) as clients:
            lanes = list(clients.map(lambda _: lane_of(server, "/shop"), range(100)))
        assert lanes == ["pool-1"] * 100
        # Not one report has been answered meanwhile.
        assert len(server.bridge.exchanges.open) == 30 and holding(witness) == NARROW
        witness.rows("SELECT RELEASE_LOCK('reports')")
        assert [answer_of(client) for client in reports] == [(200, "pool-2")] * 30


# A pool that is found while the process serves.


def test_a_pool_that_is_made_later_is_guarded_and_its_requests_run_in_the_main_lane(
    site: Site, witness: Witness
) -> None:
    def application(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        if environ["PATH_INFO"].startswith("/extra") and site.extra is None:
            site.extra = site.make(1)
            # In a worker's thread, as it is when an engine connects for the first time.
            server.bridge.desk.add(site.extra)
        return site(environ, start_response)

    with BridgeThread(application, pool=[site.shop, site.reports]) as server:
        assert [lane_of(server, "/extra/hold") for _ in range(3)] == ["quick", "pool-1", "pool-1"]
        assert [guard.key for guard in server.bridge.desk] == ["1", "2", "3"]
        assert [lane.name for lane in server.bridge.lanes] == ["quick", "pool-1", "pool-2"]
        witness.rows("SELECT GET_LOCK('reports', 30)")
        leaving = send(server, "/extra/hold")
        wait_until(lambda: holding(witness) == 1, "it holds the only connection")
        waiting = send(server, "/extra/hold")
        wait_until(lambda: len(server.bridge.exchanges.open) == 2, "the other has come")
        reset(leaving)
        wait_until(lambda: server.bridge.desk.stopper.stops == 1, "it was stopped")
        wait_until(lambda: holding(witness) == 1, "the other has the connection")
        witness.rows("SELECT RELEASE_LOCK('reports')")
        assert answer_of(waiting) == (200, "pool-1")


def test_a_bridge_without_a_pool_guards_one_that_is_made_later(site: Site) -> None:
    with BridgeThread(site, threads=2) as server:
        site.extra = site.make(1)
        server.bridge.desk.add(site.extra)
        assert [lane_of(server, path) for path in ("/extra", "/page", "/extra")] == ["default"] * 3
        # Its name and its guard are there for metrics and checks.
        assert [(guard.key, guard.size) for guard in server.bridge.desk] == [("1", 1)]


def test_another_bridge_s_requests_do_not_enter_the_lanes(site: Site) -> None:
    with BridgeThread(site, pool=site.shop) as owner, BridgeThread(site, threads=2) as other:
        assert [lane_of(other, "/shop") for _ in range(3)] == ["default"] * 3
        assert [lane_of(owner, "/shop") for _ in range(2)] == ["quick", "pool"]


# What a route is learned to use.


def test_the_narrowest_lane_counts_whatever_many_threads_report() -> None:
    lanes = [Lane(f"pool-{width}", threads=width) for width in (9, 3, 5, 7)]
    for seed in range(100):
        routes = Routes(Costs())
        route = routes.find("GET", "/")
        together = threading.Barrier(len(lanes))
        changes: list[bool] = []

        def report(lane: Lane) -> None:
            together.wait(10)  # noqa: B023 - the threads end within the round
            changes.append(routes.asked(route, lane))  # noqa: B023

        threads = [
            threading.Thread(target=report, args=(lane,)) for lane in random.Random(seed).sample(lanes, len(lanes))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert route.uses_pool is True and route.lane is lanes[1]
        assert 1 <= sum(changes) <= len(lanes)
        assert [routes.asked(route, lane) for lane in lanes] == [False] * len(lanes)


# Construction.


def test_a_bridge_that_is_refused_leaves_the_pools(site: Site) -> None:
    with pytest.raises(ValueError, match="is not a pool that can be guarded"):
        Bridge(site, pool=[site.shop, object()])
    other = Bridge(site, pool=site.reports)
    with pytest.raises(ValueError, match="belongs to another Bridge"):
        Bridge(site, pool=[site.shop, site.reports])
    other.close()
    Bridge(site, pool=[site.shop, site.reports]).close()


def test_a_lane_s_name_may_be_taken(site: Site) -> None:
    with pytest.raises(ValueError, match="two lanes are named 'pool-2'"):
        Bridge(site, pool=[site.shop, site.reports], lanes=[Lane("pool-2", "/a", threads=1)])
    Bridge(site, pool=[site.shop, site.reports]).close()


def test_several_pools_of_which_one_is_unlimited(site: Site) -> None:
    unlimited = site.make(0)
    with pytest.raises(ValueError, match=r"unlimited .*; give threads="):
        Bridge(site, pool=[site.shop, unlimited])
    bridge = Bridge(site, pool=[site.shop, unlimited], threads=6)
    assert [(lane.name, lane.threads, lane.connections) for lane in bridge.lanes[1:]] == [
        ("pool-1", 6, WIDE),
        ("pool-2", 6, 6),
    ]
    bridge.close()
