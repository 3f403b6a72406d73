"""More threads than connections: who runs, and that long requests leave a connection to short ones."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from typing import Any
from wsgiref.types import StartResponse, WSGIEnvironment

import pytest

from tests.loop.test_several_pools import HOLD, answer_of, holding, lane_of, send
from tests.support.databases import Witness
from tests.support.inprocess import BridgeThread, wait_until

CONNECTIONS, THREADS = 4, 12


class Site:
    """/long holds a connection until the test lets go of the lock, /short holds one for a moment.

    /lesson holds one for half a second. /part holds one for a moment, and then waits until as many requests as there
    are threads do the same.
    """

    def __init__(self, pool: Any) -> None:
        self.pool = pool
        self.together = threading.Barrier(THREADS)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        path = environ["PATH_INFO"]
        with closing(self.pool.connection()) as connection, closing(connection.cursor()) as cursor:
            cursor.execute({"/long": HOLD, "/lesson": "SELECT GET_LOCK('reports', 0.5)"}.get(path, "DO 1"))
        if path == "/part" and environ["QUERY_STRING"]:
            self.together.wait(10)
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [threading.current_thread().name.removeprefix("threadbridge-").partition("_")[0].encode()]


@pytest.fixture
def witness(mariadb: dict[str, str]) -> Iterator[Witness]:
    witness = Witness(mariadb)
    with closing(witness.connection):
        yield witness


@pytest.fixture
def site(make_pool: Any) -> Site:
    return Site(make_pool(maxconnections=CONNECTIONS, blocking=True))


def serving(site: Site) -> BridgeThread:
    return BridgeThread(site, pool=site.pool, threads=THREADS, short_paths=["/short"], long_paths=["/l*"])


def test_requests_that_hold_a_connection_for_a_part_of_their_time_use_all_threads(site: Site) -> None:
    with serving(site) as server:
        assert [lane_of(server, "/part") for _ in range(2)] == ["quick", "pool"]
        clients = [send(server, "/part?together") for _ in range(THREADS)]
        assert [answer_of(client) for client in clients] == [(200, "pool")] * THREADS


def test_long_requests_leave_a_connection_to_short_ones(site: Site, witness: Witness) -> None:
    with serving(site) as server:
        assert [lane_of(server, path) for path in ("/long", "/short", "/short")] == ["quick", "quick", "pool"]
        witness.rows("SELECT GET_LOCK('reports', 30)")
        # Since connections do not become free soon, it pays to keep one.
        assert [lane_of(server, "/lesson") for _ in range(2)] == ["quick", "pool"]
        clients = [send(server, "/long") for _ in range(2 * THREADS)]
        lane = server.bridge.lanes[-1]
        wait_until(lambda: holding(witness) == CONNECTIONS - 1, "they hold all but one")
        wait_until(lambda: lane.queued == 2 * THREADS - (CONNECTIONS - 1), "the others wait for a thread")
        assert [lane_of(server, "/short") for _ in range(50)] == ["pool"] * 50
        assert (holding(witness), lane.busy, lane.kept) == (CONNECTIONS - 1, CONNECTIONS - 1, 1)
        witness.rows("SELECT RELEASE_LOCK('reports')")
        assert [answer_of(client) for client in clients] == [(200, "pool")] * 2 * THREADS


def test_while_nothing_is_short_long_requests_use_all_threads(site: Site, witness: Witness) -> None:
    with serving(site) as server:
        assert lane_of(server, "/long") == "quick"
        witness.rows("SELECT GET_LOCK('reports', 30)")
        clients = [send(server, "/long") for _ in range(THREADS)]
        wait_until(lambda: holding(witness) == CONNECTIONS, "they hold all connections")
        wait_until(lambda: server.bridge.lanes[-1].busy == THREADS, "the others wait for one")
        # A wait for a connection can be interrupted, like a query.
        for client in clients:
            client.close()
        wait_until(lambda: server.bridge.lanes[-1].busy == 0, "all are free")
        witness.rows("SELECT RELEASE_LOCK('reports')")
        assert lane_of(server, "/long") == "pool"
