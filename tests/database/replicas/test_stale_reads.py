"""No client misses what it has changed itself, and nobody reads from a replica that is too far behind."""

from __future__ import annotations

import http.client
import itertools
import random
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from http.cookies import SimpleCookie

import pytest
from tornado.httputil import HTTPHeaders

from tests.database.replicas.conftest import Serve, usable
from tests.database.replicas.stacks import DBUtils, SQLAlchemy, Stack
from tests.support.inprocess import BridgeThread, wait_until
from tests.support.replication import PRIMARY_ID, REPLICA_ID, Server
from threadbridge.crossing.replicas import COOKIE, change_cookie, changed_at

_orders = itertools.count(random.randrange(10**6) * 10**6)


class Client:
    """A client that keeps a connection and its cookie."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        self.cookie = ""
        self.set_cookie: str | None = None

    def ask(self, path: str, method: str = "GET") -> tuple[int, str]:
        """The response's status and body."""
        self._connection.request(method, path, headers={"Cookie": self.cookie} if self.cookie else {})
        response = self._connection.getresponse()
        self.set_cookie = response.getheader("Set-Cookie")
        if self.set_cookie is not None:
            self.cookie = self.set_cookie.partition(";")[0]
        return response.status, response.read().decode()

    def close(self) -> None:
        self._connection.close()


@pytest.mark.parametrize("stack", [DBUtils, SQLAlchemy])
def test_a_client_finds_what_it_has_changed(stack: type[Stack], serve: Serve, servers: tuple[Server, Server]) -> None:
    number = next(_orders)
    with serve(stack, replica_lag=60) as server:
        writer, other = Client(server.port), Client(server.port)
        servers[1].rows("STOP SLAVE SQL_THREAD")
        assert writer.ask(f"/orders/{number}", "POST") == (200, "added")
        assert writer.ask(f"/reports/orders/{number}") == (200, f"1 {PRIMARY_ID}")
        # What others read may be some seconds old.
        assert other.ask(f"/reports/orders/{number}") == (200, f"0 {REPLICA_ID}")
        servers[1].rows("START SLAVE")
        [replica] = server.bridge.desk.replicas
        wait_until(lambda: replica.may_read(changed_at(HTTPHeaders({"Cookie": writer.cookie}))), "the replica has it")
        assert writer.ask(f"/reports/orders/{number}") == (200, f"1 {REPLICA_ID}")
        writer.close()
        other.close()


def test_who_has_changed_something_and_got_an_error_finds_it_too(serve: Serve, servers: tuple[Server, Server]) -> None:
    number = next(_orders)
    with serve(DBUtils, replica_lag=60) as server:
        client = Client(server.port)
        servers[1].rows("STOP SLAVE SQL_THREAD")
        assert client.ask(f"/broken/{number}", "POST")[0] == 500
        assert client.ask(f"/reports/orders/{number}") == (200, f"1 {PRIMARY_ID}")
        client.close()


def test_only_who_has_changed_something_gets_the_cookie(serve: Serve) -> None:
    with serve(DBUtils, replica_lag=7) as server:
        client = Client(server.port)
        for path, method in (("/server", "GET"), ("/server", "POST"), ("/reports/server", "GET"), ("/page", "POST")):
            client.ask(path, method)
            assert client.set_cookie is None
        client.ask(f"/orders/{next(_orders)}", "POST")
        attributes = SimpleCookie(client.set_cookie)[COOKIE]
        # 7 s and one for each time that is rounded.
        assert attributes["max-age"] == "8"
        assert (attributes["path"], attributes["samesite"], attributes["httponly"]) == ("/", "Lax", True)
        # An earlier one that counts for longer stays, but not one that has been invented.
        client.cookie = f"{COOKIE}=999999999999999"
        client.ask(f"/orders/{next(_orders)}", "POST")
        assert SimpleCookie(client.set_cookie)[COOKIE]["max-age"] == "15"
        client.close()


def test_under_load_no_client_misses_its_order(serve: Serve, servers: tuple[Server, Server]) -> None:
    """Six clients add orders and look for them at once, while the replica falls behind again and again."""
    ended = threading.Event()
    answered: list[str] = []

    def use(server: BridgeThread) -> None:
        client = Client(server.port)
        while not ended.is_set():
            number = next(_orders)
            assert client.ask(f"/orders/{number}", "POST") == (200, "added")
            # Once at once, and once when the replica may have it.
            for pause in (0.0, random.uniform(0, 0.3)):
                ended.wait(pause)
                status, found = client.ask(f"/reports/orders/{number}")
                assert (status, found[:2]) == (200, "1 ")
                answered.append(found[2:])
        client.close()

    with serve(DBUtils, replica_lag=1.0) as server, ThreadPoolExecutor(6) as clients:
        uses = [clients.submit(use, server) for _ in range(6)]
        for _ in range(2):
            servers[1].rows("STOP SLAVE SQL_THREAD")
            before = len(answered)
            wait_until(lambda before=before: len(answered) > before + 30, "clients go on")  # type: ignore[misc]
            servers[1].rows("START SLAVE")
            from_replica = answered.count(str(REPLICA_ID))
            wait_until(
                lambda before=from_replica: answered.count(str(REPLICA_ID)) > before + 20,  # type: ignore[misc]
                "they read from the replica",
            )
        ended.set()
        for each in uses:
            each.result()
    assert answered.count(str(PRIMARY_ID)) > 30


def test_a_replica_that_is_behind_is_not_used_until_it_has_caught_up(
    serve: Serve, servers: tuple[Server, Server], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "threadbridge")
    with serve(DBUtils, replica_lag=0.5) as server:
        client = Client(server.port)
        servers[1].rows("STOP SLAVE SQL_THREAD")
        # Without a change, nothing is missing there.
        assert client.ask("/reports/server") == (200, str(REPLICA_ID))
        servers[0].rows("INSERT INTO myapplication.orders VALUES (%s)", next(_orders))
        wait_until(lambda: client.ask("/reports/server") == (200, str(PRIMARY_ID)), "reports go to the primary")
        wait_until(lambda: "lane reports: reads from the primary, because" in caplog.text, "the log says so")
        servers[1].rows("START SLAVE")
        wait_until(lambda: client.ask("/reports/server") == (200, str(REPLICA_ID)), "they go to the replica again")
        lines = [re.sub("[0-9.]+ s", "N s", line) for line in caplog.messages if line.startswith("lane reports")]
        assert lines == [
            "lane reports: reads from the replica PooledDB of MySQLdb, N s behind at most",
            "lane reports: reads from the primary, because the replica is N s behind (replica_lag is N s)",
            "lane reports: reads from the replica PooledDB of MySQLdb, N s behind at most",
        ]
        client.close()


@pytest.mark.parametrize("wrong", ["not read-only", "no replica"])
def test_a_server_that_is_no_replica_is_not_read_from(
    wrong: str, serve: Serve, servers: tuple[Server, Server], caplog: pytest.LogCaptureFixture
) -> None:
    primary, replica = servers
    if wrong == "not read-only":
        replica.rows("SET GLOBAL read_only = 0")
        expected = "the replica is not read-only; SET GLOBAL read_only = 1 there"
    else:
        replica.rows("STOP SLAVE")
        primary.rows("INSERT INTO myapplication.orders VALUES (%s)", next(_orders))
        expected = "the replica does not have yet what the primary has committed"
    caplog.set_level("INFO", "threadbridge")
    with serve(DBUtils, waits=False) as server:
        client = Client(server.port)
        wait_until(lambda: expected in caplog.text, "the log says why")
        assert client.ask("/reports/server") == (200, str(PRIMARY_ID))
        replica.rows("SET GLOBAL read_only = 1")
        replica.rows("START SLAVE")
        usable(server)
        assert client.ask("/reports/server") == (200, str(REPLICA_ID))
        client.close()


def test_a_bridge_begins_to_look_with_its_first_request(serve: Serve) -> None:
    with serve(DBUtils, watches=False) as server:
        client = Client(server.port)
        assert client.ask("/page") == (200, "")
        usable(server)
        assert client.ask("/reports/server") == (200, str(REPLICA_ID))
        client.close()


class _Known:
    """What is known of a replica."""

    def __init__(self, now: float, max_lag: float) -> None:
        self.now, self.max_lag = now, max_lag

    def may_read(self, changed_at: float) -> bool:
        raise NotImplementedError

    def begin(self, changed_at: float) -> bool:
        raise NotImplementedError

    def leave(self) -> None:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("is_committed", "expected"),
    [(True, ("1000250", "11")), (False, ("1010250", "21"))],
)
def test_the_cookie_outlives_every_replica_that_may_lack_the_change(
    is_committed: bool, expected: tuple[str, str]
) -> None:
    """If the transaction is still open when the response begins, the cookie counts as long again."""
    cookie = SimpleCookie(change_cookie([_Known(1000.25, 5.0), _Known(1000.2, 10.0)], is_committed, 999.0))[COOKIE]
    assert (cookie.value, cookie["max-age"]) == expected


@pytest.mark.parametrize(("earlier", "expected"), [(0.0, "1000000"), (1004.5, "1004500"), (1e9, "1010000")])
def test_a_later_change_does_not_shorten_what_an_open_transaction_needs(earlier: float, expected: str) -> None:
    cookie = SimpleCookie(change_cookie([_Known(1000.0, 10.0)], True, earlier))[COOKIE]
    assert cookie.value == expected


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (f"{COOKIE}=1700000000123", 1700000000.123),
        (f"a=b; {COOKIE}=5000; c=d", 5.0),
        (f"a=b;{COOKIE}=5000", 5.0),
        (f"other_{COOKIE}=5000", 0.0),
        (f"a={COOKIE}=5000", 0.0),
        (f"{COOKIE}=", 0.0),
        (f"{COOKIE}=-1", 0.0),
        (f"{COOKIE}=1e99", 0.0),
        (f"{COOKIE}={'9' * 400}", 0.0),
        ("a=b", 0.0),
    ],
)
def test_a_cookie_that_makes_no_sense_counts_as_none(header: str, expected: float) -> None:
    assert changed_at(HTTPHeaders({"Cookie": header})) == expected
    assert changed_at(HTTPHeaders()) == 0.0
