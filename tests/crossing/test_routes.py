"""Learning which routes use the database, on real pools; and that slow queries keep no quick page waiting."""

from __future__ import annotations

import http.client
import socket
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from wsgiref.types import StartResponse, WSGIEnvironment

import MySQLdb
import pytest
from dbutils.pooled_db import PooledDB

from tests.support.inprocess import BridgeThread, wait_until
from threadbridge import Lane
from threadbridge.crossing.costs import Costs
from threadbridge.crossing.routes import MAX_ROUTES, Routes
from threadbridge.loop.lane_choice import QUICK_THREADS


def get(path: str, method: str = "GET") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()


def body_of(client: socket.socket) -> str:
    with client:
        response = http.client.HTTPResponse(client)
        response.begin()
        return response.read().decode()


class Pages:
    """An application over a pool of two connections.

    /query… asks for a connection. /page… does not. Those with ``wait`` in their path first wait for the test; /may…
    asks if ``asks`` is set. Each answers with the lane it ran in.
    """

    def __init__(self, directory: Path) -> None:
        self.pool = PooledDB(
            sqlite3, maxconnections=2, blocking=True, database=directory / "test.db", check_same_thread=False
        )
        self.entered: list[str] = []
        self.go_on = threading.Event()
        self.asks = False

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        path = environ["PATH_INFO"]
        self.entered.append(path)
        uses_pool = path.startswith("/query") or (path.startswith("/may") and self.asks)
        if uses_pool:
            with closing(self.pool.connection()) as connection:
                connection.cursor().execute("SELECT 1")
                self._wait(path)
        else:
            self._wait(path)
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [threading.current_thread().name.split("-")[1].partition("_")[0].encode()]

    def _wait(self, path: str) -> None:
        if "wait" in path:
            assert self.go_on.wait(20)


@pytest.fixture
def pages(tmp_path: Path) -> Pages:
    return Pages(tmp_path)


@contextmanager
def serving(pages: Pages, **parameters: Any) -> Iterator[BridgeThread]:
    with BridgeThread(pages, pool=pages.pool, **parameters) as server:
        try:
            yield server
        finally:
            pages.go_on.set()


def lane_of(server: BridgeThread, path: str, method: str = "GET", **parameters: Any) -> str:
    response, body = server.request(method, path, **parameters)
    assert response.status == 200
    return body.decode()


def enter(server: BridgeThread, pages: Pages, path: str) -> socket.socket:
    """Send a request and wait until the application runs it."""
    count = pages.entered.count(path)
    client = server.send(get(path))
    wait_until(lambda: pages.entered.count(path) == count + 1, f"{path} runs")
    return client


def test_each_route_goes_where_it_was_seen_to_belong(pages: Pages) -> None:
    with serving(pages) as server:
        # The first of each kind runs in the quick lane, whatever it turns out to be.
        assert [lane_of(server, "/page/1"), lane_of(server, "/page/22"), lane_of(server, "/page/3")] == ["quick"] * 3
        assert [lane_of(server, "/query/1"), lane_of(server, "/query/22")] == ["quick", "pool"]
        # The same path for the application, which gets it decoded.
        assert [lane_of(server, "/%71uery/1"), lane_of(server, "/query/%31")] == ["pool", "pool"]


def test_a_quick_route_that_asks_for_a_connection_is_moved_for_good(pages: Pages) -> None:
    with serving(pages) as server:
        assert [lane_of(server, "/may/1"), lane_of(server, "/may/2")] == ["quick", "quick"]
        pages.asks = True
        assert [lane_of(server, "/may/3"), lane_of(server, "/may/4")] == ["quick", "pool"]
        pages.asks = False
        assert [lane_of(server, "/may/5"), lane_of(server, "/may/6")] == ["pool", "pool"]


def test_methods_are_learned_apart(pages: Pages) -> None:
    with serving(pages) as server:
        assert [lane_of(server, "/query") for _ in range(2)] == ["quick", "pool"]
        assert [lane_of(server, "/query", "POST", body=b"") for _ in range(2)] == ["quick", "pool"]
        server.request("HEAD", "/query")
        pages.asks = True
        assert server.request("HEAD", "/may")[0].status == 200
        assert lane_of(server, "/may") == "quick"


def test_one_probe_at_a_time(pages: Pages) -> None:
    with serving(pages) as server:
        probe = enter(server, pages, "/page/wait/1")
        other = enter(server, pages, "/page/wait/2")
        pages.go_on.set()
        assert [body_of(probe), body_of(other)] == ["quick", "pool"]
        assert lane_of(server, "/page/wait/3") == "quick"


def test_no_probe_takes_the_last_free_quick_thread(pages: Pages) -> None:
    with serving(pages) as server:
        assert lane_of(server, "/page") == "quick"
        probes = [enter(server, pages, f"/page/wait/{shape}") for shape in "abcd"]
        assert lane_of(server, "/page") == "quick"
        pages.go_on.set()
        assert [body_of(probe) for probe in probes] == ["quick"] * (QUICK_THREADS - 1) + ["pool"]


def test_a_probe_whose_body_comes_late_does_not_take_the_last_one_either(pages: Pages) -> None:
    with serving(pages) as server:
        assert lane_of(server, "/page") == "quick"
        head = b"POST /page/wait/%s HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nConnection: close\r\n\r\n"
        probes = [server.send(head % shape) for shape in (b"a", b"b", b"c", b"d")]
        wait_until(lambda: len(server.bridge.exchanges.open) == 4, "all four have been admitted")
        for count, probe in enumerate(probes, 2):
            probe.sendall(b".")
            wait_until(lambda count=count: len(pages.entered) == count, "it runs")  # type: ignore[misc]
        assert lane_of(server, "/page") == "quick"
        pages.go_on.set()
        assert [body_of(probe) for probe in probes] == ["quick"] * (QUICK_THREADS - 1) + ["pool"]


def test_a_probe_that_leaves_before_it_ran_lets_another_be_the_probe(pages: Pages) -> None:
    with serving(pages) as server:
        head = b"POST /page HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\n"
        leaving = server.send(head)
        wait_until(lambda: len(server.bridge.exchanges.open) == 1, "the probe has been admitted")
        leaving.close()
        wait_until(lambda: not server.bridge.exchanges.open, "its client is seen to have left")
        assert lane_of(server, "/page", "POST", body=b".") == "quick"
    assert pages.entered == ["/page"]


def test_explicit_lanes_come_before_what_is_learned(pages: Pages) -> None:
    with serving(pages, lanes=[Lane("own", "/query/*", threads=1)]) as server:
        assert [lane_of(server, "/query/1") for _ in range(3)] == ["own"] * 3
        assert lane_of(server, "/query") == "quick"


def test_probes_that_ask_for_a_connection_leave_the_quick_lane_free(pages: Pages) -> None:
    with serving(pages) as server:
        # As many kinds of slow queries as the quick lane has threads, and no page is known yet.
        slow = []
        for shape in "abcd":
            slow.append(enter(server, pages, f"/query/wait/{shape}"))
            wait_until(lambda: server.bridge.lanes[0].free == QUICK_THREADS, "another thread takes the probe's place")
        assert lane_of(server, "/page") == "quick"
        assert not pages.go_on.is_set()
        pages.go_on.set()
        assert [body_of(client) for client in slow] == ["quick"] * QUICK_THREADS


def test_requests_of_a_misjudged_route_leave_the_quick_lane(pages: Pages) -> None:
    with serving(pages) as server:
        quick = server.bridge.lanes[0]
        assert [lane_of(server, "/page"), lane_of(server, "/may")] == ["quick", "quick"]
        # Known as quick by now, it takes all quick threads, and more of it wait, when it begins to ask.
        pages.asks = True
        give_back = take_all_connections(pages)
        slow = [server.send(get("/may")) for _ in range(20)]
        wait_until(lambda: len(server.bridge.exchanges.open) == 20, "all have arrived")
        wait_until(lambda: quick.queued == 0 and quick.free > 0, "they have left the quick lane")
        assert lane_of(server, "/page") == "quick"
        wait_until(lambda: len(server.bridge.exchanges.open) == 20, "only it has been answered")
        give_back()
        lanes = [body_of(client) for client in slow]
        assert set(lanes) <= {"quick", "pool"} and lanes.count("quick") <= 2 * QUICK_THREADS


def take_all_connections(pages: Pages) -> Callable[[], None]:
    """Have requests wait for connections, until what is returned is called."""
    held = [pages.pool.connection() for _ in range(2)]

    def give_back() -> None:
        for connection in held:
            connection.close()

    return give_back


def test_a_bounded_number_of_routes_is_known() -> None:
    routes = Routes(Costs())
    frequent = routes.find("GET", "/frequent")
    for number in range(3 * MAX_ROUTES):
        routes.find("GET", "/" + "x" * (number % 100) + "y" * (number // 100))
        assert routes.find("GET", "/frequent") is frequent
    assert len(routes) == MAX_ROUTES
    # Nor does one take much memory, however long a path a client makes up.
    assert routes.find("GET", "/" + "x" * 60_000) is routes.find("GET", "/" + "x" * 50_000)


def test_routes_are_told_apart_by_method_and_shape() -> None:
    routes = Routes(Costs())
    first = routes.find("GET", "/users/17/posts/3")
    assert routes.find("GET", "/users/4/posts/12345") is first
    others = [("HEAD", "/users/17/posts/3"), ("GET", "/users/17/posts"), ("GET", "/users/me/posts/3"), ("GET", "/")]
    assert len({first, *(routes.find(*other) for other in others)}) == 1 + len(others)


def test_a_probe_is_taken_once_and_again_when_it_is_given_up() -> None:
    routes = Routes(Costs())
    route = routes.find("GET", "/")
    assert [routes.begin_probe(route), routes.begin_probe(route)] == [True, False]
    routes.never_ran(route, was_probe=True)
    assert routes.begin_probe(route)
    routes.ran(route, was_probe=True)
    assert route.uses_pool is False and not routes.begin_probe(route)


def test_whatever_many_threads_report_one_that_asked_decides() -> None:
    lane = Lane("pool", threads=1)
    for _ in range(200):
        routes = Routes(Costs())
        route = routes.find("GET", "/")
        assert routes.begin_probe(route)
        together = threading.Barrier(4)

        def report(what: Callable[[], object], together: threading.Barrier = together) -> None:
            together.wait(10)
            what()

        reports: list[Callable[[], object]] = [
            lambda: routes.ran(route, was_probe=True),  # noqa: B023 - the threads end within the round
            lambda: routes.ran(route, was_probe=False),  # noqa: B023
            lambda: routes.asked(route, lane),  # noqa: B023
            lambda: routes.ran(route, was_probe=False),  # noqa: B023
        ]
        threads = [threading.Thread(target=report, args=(what,)) for what in reports]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert route.uses_pool is True and route.probing is False


def test_a_quick_page_is_answered_while_slow_queries_hold_all_connections(mariadb: dict[str, str]) -> None:
    """On a server that has just started, with no configuration."""
    parameters = {
        "unix_socket": mariadb["MYSQL_UNIX_SOCKET"],
        "user": mariadb["MYSQL_USER"],
        "password": Path(mariadb["MYSQL_PASSWORD_FILE"]).read_text().strip(),
        "database": mariadb["MYSQL_DATABASE"],
    }
    pool = PooledDB(MySQLdb, maxconnections=10, blocking=True, **parameters)

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        if environ["PATH_INFO"] == "/slow":
            with closing(pool.connection()) as connection, closing(connection.cursor()) as cursor:
                # A query that takes until the test gives the lock back.
                cursor.execute("SELECT GET_LOCK('slow', 30)")
                cursor.execute("SELECT RELEASE_LOCK('slow')")
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"answered"]

    with closing(MySQLdb.connect(**parameters)) as connection, closing(connection.cursor()) as cursor:

        def waiting() -> int:
            cursor.execute("SELECT COUNT(*) FROM information_schema.processlist WHERE state = 'User lock'")
            [(count,)] = cursor.fetchall()
            return int(count)

        cursor.execute("SELECT GET_LOCK('slow', 30)")
        with BridgeThread(app, pool=pool) as server:
            slow = [server.send(get("/slow")) for _ in range(20)]
            wait_until(lambda: waiting() == 10, "slow queries hold all connections")
            for _ in range(5):
                assert server.request(path="/")[1] == b"answered"
            assert waiting() == 10
            wait_until(lambda: len(server.bridge.exchanges.open) == 20, "all of them still wait")
            cursor.execute("SELECT RELEASE_LOCK('slow')")
            assert [body_of(client) for client in slow] == ["answered"] * 20
