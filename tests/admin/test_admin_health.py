"""Readiness for load balancers: the event loop, the threads of each lane, the database."""

from __future__ import annotations

import asyncio
import gc
import http.client
import os
import resource
import signal
import socket
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any
from urllib.parse import quote
from wsgiref.types import StartResponse, WSGIEnvironment

import MySQLdb
import pytest
import requests
from dbutils.pooled_db import PooledDB

from tests.database.test_control_connection import no_connection_left
from tests.support.admin_site import Site, SqlSite, answer
from tests.support.databases import Witness, connect_settings, kill_server, line_to, start_server
from tests.support.inprocess import wait_until
from tests.support.processes import free_port, private_mariadb
from tests.support.requests_in_threads import running
from tests.support.supervised import Supervised
from threadbridge import Bridge, Lane
from threadbridge.admin import health
from threadbridge.admin.health import DATABASE_LIMIT, LATELY, MOST_CHECKS, DatabaseHealth, Health, Readiness
from threadbridge.database.pools.dbutils import DBUtilsGuard

HEALTHY = (200, "lane quick: ok\nlane pool: ok\ndatabase: ok\n")


def ready(site: Site, query: str = "") -> tuple[int, str]:
    answered = site.admin(f"/readyz{query}")
    return answered.status_code, answered.text


def database_line(site: Site, query: str = "") -> tuple[int, str]:
    status, text = ready(site, query)
    lines = text.splitlines()
    return status, next((line for line in lines if line.startswith("database")), lines[-1])


def test_idle_and_busy_workers_are_ready(tmp_path: Path) -> None:
    with Site(tmp_path, "--lane=other:/other/*:1") as site, ExitStack() as stack:
        expected = (200, "lane other: ok\nlane default: ok\n")
        assert ready(site) == expected
        for name in ("one", "two"):
            site.occupy(stack, name)
        stack.enter_context(site.send("/"))
        wait_until(lambda: site.document()["counts"]["waiting"] == 1, "all threads are busy, and a request waits")
        assert ready(site) == expected
        site.finish("one", "two")


def test_stuck_workers_are_not_ready(tmp_path: Path) -> None:
    # POST requests are not cancelled at their deadline: their threads are stuck until the flags exist.
    with Site(tmp_path, "--deadline=0.5") as site, ExitStack() as stack:
        clients = []
        for name in ("one", "two"):
            clients.append(stack.enter_context(site.send(f"/slow?{tmp_path / name}", "POST")))
        assert [answer(client)[:12] for client in clients] == [b"HTTP/1.1 504"] * 2
        wait_until(lambda: ready(site) == (503, "lane default: no thread can run\n"), "they do not come back")
        assert site.admin("/healthz").text == "ok\n"
        site.finish("one", "two")
        wait_until(lambda: ready(site)[0] == 200, "the threads are back")


def test_a_draining_process_is_not_ready_but_still_shows_its_requests(tmp_path: Path) -> None:
    with Site(tmp_path) as site, ExitStack() as stack:
        site.occupy(stack, "one")
        site.process.send_signal(signal.SIGTERM)
        wait_until(lambda: ready(site)[0] == 503, "it drains")
        assert ready(site)[1] == "draining: this process is about to end\n"
        document = site.document()
        assert (document["processes"][0]["draining"], document["counts"]["running"]) == (True, 1)
        site.finish("one")
        assert site.process.wait(20) == 0


def test_without_a_pool_there_is_no_database_to_ask(tmp_path: Path) -> None:
    with Site(tmp_path) as site:
        assert ready(site, "?db=1") == (503, "lane default: ok\ndatabase: there is no pool to ask\n")


def test_several_processes_are_ready_if_each_of_them_is(tmp_path: Path) -> None:
    port = free_port()
    with Supervised(tmp_path, f"--admin_port={port}") as server, requests.Session() as session:

        def ask(query: str = "") -> tuple[int, list[str]]:
            answered = session.get(
                f"http://127.0.0.1:{port}/readyz{query}", timeout=20, headers={"Connection": "close"}
            )
            return answered.status_code, sorted(answered.text.splitlines())

        one, other = sorted(server.pids())
        both = (200, [f"process {pid}: lane default: ok" for pid in (one, other)])
        wait_until(lambda: ask() == both, "both are ready")
        os.kill(other, signal.SIGSTOP)
        try:
            expected = [
                f"process {one}: lane default: ok",
                f"process {other}: no answer within {DATABASE_LIMIT + 1:g} s",
            ]
            assert ask() == (503, expected)
            # The process that answers is ready itself.
            assert ask("?process=own") == (200, ["lane default: ok"])
        finally:
            os.kill(other, signal.SIGCONT)
        wait_until(lambda: ask() == both, "the other goes on")


# The database.


@pytest.fixture(scope="module")
def own_mariadb() -> Iterator[dict[str, str]]:
    """A server that this module's tests may stop, if they start it again."""
    with private_mariadb() as variables:
        yield variables


def test_under_load_it_is_ready_at_every_check(tmp_path: Path, own_mariadb: dict[str, str]) -> None:
    ended = threading.Event()
    statuses: Counter[int] = Counter()

    def load(path: str) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", site.port, timeout=30)
        while not ended.is_set():
            connection.request("GET", path)
            answered = connection.getresponse()
            answered.read()
            statuses[answered.status] += 1
        connection.close()

    with SqlSite(tmp_path, own_mariadb) as site:
        paths = ["/quick"] * 24 + ["/sql?SELECT%201"] * 8
        threads = [threading.Thread(target=load, args=(path,)) for path in paths]
        for thread in threads:
            thread.start()
        looks: Counter[tuple[int, str]] = Counter()
        with requests.Session() as session:
            while looks.total() < 300:
                answered = session.get(f"http://127.0.0.1:{site.admin_port}/readyz", timeout=20)
                looks[answered.status_code, answered.text] += 1
        ended.set()
        for thread in threads:
            thread.join()
        assert looks == {HEALTHY: 300}
        assert statuses.keys() == {200} and statuses.total() > 200


def test_an_outage_is_noticed_by_failing_requests_and_checked_until_it_ends(
    tmp_path: Path, own_mariadb: dict[str, str]
) -> None:
    with SqlSite(tmp_path, own_mariadb) as site:
        assert ready(site) == HEALTHY
        kill_server(own_mariadb)
        try:
            wait_until(lambda: database_line(site, "?db=1")[0] == 503, "with db=1 it is asked at once")
            # No request has failed yet.
            assert ready(site) == HEALTHY
            with site.send("/sql?SELECT%201") as client:
                assert answer(client).startswith(b"HTTP/1.1 503 ")
            status, text = database_line(site)
            assert (status, "database: OperationalError: (2002, " in text) == (503, True), text
            assert "threadbridge_ready 0.0" in site.admin("/metrics").text
        finally:
            start_server(own_mariadb)
        # Without any request: a load balancer would not send one.
        wait_until(lambda: ready(site) == HEALTHY, "it is back")
        assert "threadbridge_ready 1.0" in site.admin("/metrics").text
        log = site.output()
        assert log.count("not ready, as /readyz says from now on: lane quick: ok; lane pool: ok; database: Operat") == 1
        assert log.count("ready again") == 1


def test_a_long_report_is_told_from_a_database_that_hangs(tmp_path: Path, own_mariadb: dict[str, str]) -> None:
    pid = int((Path(own_mariadb["MYSQL_UNIX_SOCKET"]).parent / "mariadb.pid").read_text())
    with SqlSite(tmp_path, own_mariadb) as site, ExitStack() as stack:
        # All connections are in use.
        for number in range(3):
            site.run(stack, f"SELECT {number}, SLEEP(60)")
        wait_until(lambda: site.admin("/requests.json").text.count("SLEEP(60)") == 3, "all run")
        last_success = time.monotonic()
        while time.monotonic() < last_success + LATELY + 0.5:
            assert ready(site) == HEALTHY
        assert database_line(site, "?db=1") == (200, "database: ok")
        os.kill(pid, signal.SIGSTOP)
        try:
            waiting = threading.Thread(target=ready, args=(site,))
            waiting.start()
            # While one check waits for the database, the loop answers other requests.
            assert site.admin("/healthz").elapsed.total_seconds() < DATABASE_LIMIT / 2
            waiting.join()
            expected = (503, f"database: no answer to a new connection within {DATABASE_LIMIT:g} s")
            wait_until(lambda: database_line(site) == expected, "it hangs")
        finally:
            os.kill(pid, signal.SIGCONT)
        wait_until(lambda: ready(site) == HEALTHY, "the server goes on")


def test_a_pool_whose_connections_the_network_has_lost_is_not_ready(
    tmp_path: Path, own_mariadb: dict[str, str]
) -> None:
    with line_to(own_mariadb["MYSQL_UNIX_SOCKET"]) as line:
        mariadb = {**own_mariadb, "MYSQL_UNIX_SOCKET": line.path}
        with SqlSite(tmp_path, mariadb, "--deadline=2") as site, ExitStack() as stack:
            for number in range(3):
                site.run(stack, f"SELECT {number}, SLEEP(60)")
            wait_until(lambda: site.admin("/requests.json").text.count("SLEEP(60)") == 3, "all run")
            line.swallow_old()
            expected = "database: all 3 connections are held by requests that are cancelled or past their deadline"
            wait_until(lambda: database_line(site) == (503, expected), "they are given up, and do not come back")
            # New connections would be answered.
            connection = MySQLdb.connect(**connect_settings(own_mariadb, line.path))
            connection.close()


def test_a_pool_whose_connections_long_streams_hold_is_ready(tmp_path: Path, own_mariadb: dict[str, str]) -> None:
    with SqlSite(tmp_path, own_mariadb, "--deadline=0.5") as site, ExitStack() as stack:
        streams = [stack.enter_context(site.send("/stream?SELECT%201")) for _ in range(3)]
        for client in streams:
            assert client.recv(65536).startswith(b"HTTP/1.1 200 OK")
        begun = time.monotonic()
        # Long after the deadline, and after the last successful statement.
        while time.monotonic() < begun + 0.5 + 2 * LATELY + 0.5:
            assert ready(site) == HEALTHY
            # The clients keep reading.
            assert all(client.recv(65536) for client in streams)


def status(site: SqlSite, sql: str) -> int:
    with site.send(f"/sql?{quote(sql)}") as client:
        return int(answer(client)[9:12])


def test_a_changed_password_is_noticed_by_failing_requests(tmp_path: Path, own_mariadb: dict[str, str]) -> None:
    witness = Witness(own_mariadb)
    with SqlSite(tmp_path, own_mariadb) as site:
        assert ready(site) == HEALTHY
        witness.rows("SET PASSWORD = PASSWORD('another')")
        try:
            others = set(witness.connections)
            for number in others:
                witness.rows(f"KILL {number}")
            wait_until(lambda: not others & set(witness.connections), "they are gone")
            # First requests fail because their connections are lost, then one because it must connect.
            wait_until(lambda: "(1045, " in (status(site, "SELECT 1"), site.output())[1], "a connection is refused")
            wait_until(lambda: database_line(site)[0] == 503, "it is noticed")
            assert "Access denied" in database_line(site)[1]
        finally:
            witness.connection.cursor().execute("SET PASSWORD = PASSWORD(%s)", (witness.settings["password"],))
        wait_until(lambda: ready(site) == HEALTHY, "the password is right again")
        # The application's own mistakes do not count.
        last_success = time.monotonic()
        while time.monotonic() < last_success + LATELY + 0.5:
            assert status(site, "SELECT * FROM no_such_table") == 500
            assert ready(site) == HEALTHY
    witness.connection.close()


def test_a_database_without_free_connections_is_not_ready(tmp_path: Path, own_mariadb: dict[str, str]) -> None:
    witness = Witness(own_mariadb)
    with SqlSite(tmp_path, own_mariadb) as site:
        # The session is changed, so the idle connection is closed.
        assert status(site, "SET @a = 1") == 200
        with no_connection_left(witness):
            wait_until(lambda: status(site, "SELECT 1") == 503, "a request fails")

            def is_noticed() -> bool:
                # Each failure is a reason to ask again; a connection may have become free for a moment.
                return status(site, "SELECT 1") == 503 and "Too many connections" in database_line(site)[1]

            wait_until(is_noticed, "it is noticed")
            assert database_line(site)[0] == 503
        wait_until(lambda: ready(site) == HEALTHY, "there are some again")
        assert status(site, "SELECT 1") == 200
    witness.connection.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="the server lets root in as its administrator")
def test_an_account_without_free_connections_is_not_ready(tmp_path: Path, own_mariadb: dict[str, str]) -> None:
    witness = Witness(own_mariadb)
    root = MySQLdb.connect(unix_socket=own_mariadb["MYSQL_UNIX_SOCKET"], user="root")
    account = f"'{own_mariadb['MYSQL_USER']}'@'localhost' WITH MAX_USER_CONNECTIONS"
    with SqlSite(tmp_path, own_mariadb) as site, closing(root), closing(witness.connection):
        assert status(site, "SET @a = 1") == 200
        root.query(f"ALTER USER {account} 1")
        try:
            # Connections made before the limit do not count.
            with no_connection_left(witness):
                assert status(site, "SELECT 1") == 503
                wait_until(lambda: "(1226, " in database_line(site)[1], "it is noticed")
                assert database_line(site)[0] == 503
        finally:
            root.query(f"ALTER USER {account} 0")
        wait_until(lambda: ready(site) == HEALTHY, "there are some again")


@pytest.mark.skipif(os.geteuid() != 0, reason="the server lets root in as its administrator")
def test_a_read_only_database_is_ready(tmp_path: Path, own_mariadb: dict[str, str]) -> None:
    Witness(own_mariadb).connection.close()
    root = MySQLdb.connect(unix_socket=own_mariadb["MYSQL_UNIX_SOCKET"], user="root")
    with SqlSite(tmp_path, own_mariadb) as site, closing(root):
        root.query("SET GLOBAL read_only = 1")
        try:
            assert status(site, "INSERT INTO notes VALUES ('x')") == 503
            assert ready(site) == HEALTHY
            assert status(site, "SELECT 1") == 200
        finally:
            root.query("SET GLOBAL read_only = 0")
        assert status(site, "INSERT INTO notes VALUES ('x')") == 200


def test_a_process_without_descriptors_for_clients_can_still_check_the_database(
    tmp_path: Path, own_mariadb: dict[str, str]
) -> None:
    with SqlSite(tmp_path, own_mariadb) as site, ExitStack() as stack:
        pid, limit = site.process.pid, 80
        _, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, hard))
        idle = [stack.enter_context(socket.create_connection(("127.0.0.1", site.port))) for _ in range(2 * limit)]
        wait_until(lambda: "no file descriptors left for new connections" in site.output(), "there are no more")
        assert database_line(site, "?db=1") == (200, "database: ok")
        for client in idle:
            client.close()
        wait_until(lambda: ready(site) == HEALTHY, "there are some again")


def test_few_checks_may_hang_and_they_delay_nothing(
    own_mariadb: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "DATABASE_LIMIT", 0.1)
    monkeypatch.setattr(health, "GIVE_UP_AFTER", 0.2)
    monkeypatch.setattr(health, "FRESH", 0.0)
    attempts = []

    async def judge() -> None:
        with line_to(own_mariadb["MYSQL_UNIX_SOCKET"]) as line:

            def connect() -> object:
                # The application's own function, without timeouts.
                attempts.append(threading.current_thread())
                return MySQLdb.connect(**connect_settings(own_mariadb, line.path))

            guard = DBUtilsGuard(PooledDB(connect, maxconnections=1))
            database = DatabaseHealth()
            assert await database.problem(guard, always=False) == ""
            assert await database.problem(guard, always=True) == ""
            assert len(attempts) == 1
            line.swallow()
            problems: Counter[str] = Counter()
            while (problem := await database.problem(guard, always=True)) != f"{MOST_CHECKS} attempts to connect hang":
                problems[problem] += 1
                assert problems.total() < 50
            assert problems.keys() == {"no answer to a new connection within 0.1 s"}
            # Each is counted once, however often it is looked at.
            assert await database.problem(guard, always=True) == f"{MOST_CHECKS} attempts to connect hang"
            assert len(attempts) == 1 + MOST_CHECKS
            line.mend()
            for thread in attempts:
                await asyncio.to_thread(thread.join)
            assert await database.problem(guard, always=True) == ""
            guard.close()

    asyncio.run(judge())


def page(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
    start_response("200 OK", [])
    return []


def test_each_pool_s_database_is_judged_and_those_made_later_make_no_process_unready(
    make_pool: Callable[..., Any],
) -> None:
    absent = make_pool(unix_socket="/nowhere/mariadb.sock")

    async def judge(bridge: Bridge) -> Readiness:
        return await Health(bridge).readiness(draining=False, asks_database=True)

    bridge = Bridge(page, pool=[make_pool(), absent])
    found = asyncio.run(judge(bridge))
    bridge.close()
    lanes = ("lane quick: ok", "lane pool-1: ok", "lane pool-2: ok")
    assert (found.ready, found.findings[:4]) == (False, (*lanes, "database 1: ok"))
    assert found.findings[4].startswith("database 2: OperationalError: (2002")

    bridge = Bridge(page, pool=make_pool())
    bridge.desk.add(absent)
    healthy = ("lane quick: ok", "lane pool: ok", "database 1: ok")
    # It is asked only if a request has found it absent.
    assert asyncio.run(judge(bridge)) == Readiness(True, False, healthy)
    with running(), pytest.raises(MySQLdb.OperationalError):
        absent.connection()
    found = asyncio.run(judge(bridge))
    bridge.close()
    assert (found.ready, found.findings[:3]) == (True, healthy)
    assert found.findings[3].startswith("database 2: OperationalError: (2002")


def test_what_is_no_reason_comes_last() -> None:
    far = Lane("far", "/far/*", upstream=["http://127.0.0.1:1"])
    bridge = Bridge(page, threads=1, lanes=[far])
    found = asyncio.run(Health(bridge).readiness(draining=False, asks_database=True))
    bridge.close()
    assert found.findings == ("lane default: ok", "database: there is no pool to ask", "lane far: ok")


def test_health_does_not_keep_a_pool_that_the_application_has_dropped(make_pool: Callable[..., Any]) -> None:
    bridge = Bridge(page, pool=make_pool())
    health = Health(bridge)
    pools = [PooledDB(sqlite3, database=":memory:")]
    bridge.desk.add(pools[0])

    async def judge() -> None:
        for expected in (2, 1):
            assert (await health.readiness(draining=False, asks_database=True)).ready
            assert len(list(bridge.desk)) == expected
            # The application drops it.
            pools.clear()
            gc.collect()

    asyncio.run(judge())
    bridge.close()
