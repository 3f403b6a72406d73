"""What Django promises of its transactions and connections holds for cancelled requests too."""

from __future__ import annotations

import contextlib
import gc
import random
import re
import socket
import threading
import urllib.parse
import weakref
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import django.db
import MySQLdb
import psycopg
import pytest
import requests
from django.core.wsgi import get_wsgi_application
from django.db import connections, transaction

from tests.database.contract.servers import MariaDB, PostgreSQL
from tests.support import django_databases
from tests.support.databases import connect_settings
from tests.support.django_models import Account, Note, tables
from tests.support.inprocess import BridgeThread, reset, wait_until
from tests.support.processes import Frontend
from tests.support.requests_in_threads import InThread, in_request, running
from threadbridge.crossing.current import TrackedRequest
from threadbridge.database.guard import nobody_asked
from threadbridge.database.pools import django_kind
from threadbridge.database.pools.django import DjangoGuard
from threadbridge.database.pools.django_hooks import guards

Entry = dict[str, Any]
COMPUTE = MariaDB.compute


@contextlib.contextmanager
def guarded(entry: Entry, alias: str = "default", **options: Any) -> Iterator[DjangoGuard]:
    """A database with the models' tables and two accounts of 100."""
    with django_databases.database(alias, entry), tables(alias):
        Account.objects.using(alias).bulk_create([Account(pk=1, amount=100), Account(pk=2, amount=100)])
        connections[alias].close()
        with closing(DjangoGuard(alias, **options)) as guard:
            yield guard


@pytest.fixture(params=["mysql", "postgresql", "postgresql-pool"])
def entry(request: pytest.FixtureRequest, mariadb: dict[str, str]) -> Entry:
    if request.param == "mysql":
        return django_databases.mysql(connect_settings(mariadb))
    server = request.getfixturevalue("postgresql")
    options = {"pool": {"min_size": 1, "max_size": 4}} if request.param == "postgresql-pool" else {}
    return django_databases.postgresql(server, OPTIONS=options)


@pytest.fixture
def guard(entry: Entry) -> Iterator[DjangoGuard]:
    with guarded(entry) as guard:
        yield guard


def amounts() -> list[int]:
    return list(Account.objects.order_by("pk").values_list("amount", flat=True))


def cancel_when_it_computes(request: TrackedRequest) -> None:
    wait_until(lambda: any(each.sql == COMPUTE for each in request.statements.latest), "it computes")
    request.cancel()


def take(number: int) -> None:
    Account.objects.filter(pk=number).update(amount=0)


# Transactions.


def test_an_atomic_block_of_a_cancelled_request_is_rolled_back_and_its_hooks_do_not_run(guard: DjangoGuard) -> None:
    hooks: list[str] = []
    with running() as request:
        with pytest.raises(django.db.OperationalError) as raised, transaction.atomic():
            take(1)
            transaction.on_commit(lambda: hooks.append("too early"))
            request.cancel()
        assert isinstance(raised.value.__cause__, connections["default"].Database.OperationalError)
        assert request.statements.outcome == "rolled back"
        assert connections["default"].get_autocommit()
    assert (amounts(), hooks) == ([100, 100], [])
    with running() as request:
        with transaction.atomic():
            take(1)
            transaction.on_commit(lambda: hooks.append("committed"))
        assert request.statements.outcome == "committed"
    assert (amounts(), hooks) == ([0, 100], ["committed"])


def test_a_savepoint_is_rolled_back_and_the_rest_of_a_cancelled_request_too(guard: DjangoGuard) -> None:
    with running() as request:
        with transaction.atomic():
            take(1)
            with contextlib.suppress(RuntimeError), transaction.atomic():
                take(2)
                raise RuntimeError
        # Which changes the savepoint has undone is not tracked.
        assert request.statements.outcome == "unknown"
    assert amounts() == [0, 100]
    with running() as request:
        # Django raises no error at the end: as it could not release the savepoint, it rolls back.
        with transaction.atomic():
            take(2)
            with contextlib.suppress(django.db.OperationalError), transaction.atomic():
                request.cancel()
                take(1)
        assert request.statements.outcome == "rolled back"
        sent = [statement.sql for statement in request.statements.latest]
        assert any(sql.startswith("SAVEPOINT") for sql in sent)
    assert amounts() == [0, 100]


def test_without_a_transaction_each_statement_commits_itself_until_the_request_is_cancelled(guard: DjangoGuard) -> None:
    with running() as request:
        take(1)
        assert request.statements.outcome == "committed"
        request.cancel()
        with pytest.raises(django.db.OperationalError):
            take(2)
        assert request.statements.outcome == "committed"
    assert amounts() == [0, 100]


def test_manual_transactions_of_a_cancelled_request_are_not_committed(guard: DjangoGuard) -> None:
    for end in (transaction.commit, lambda: transaction.set_autocommit(True)):
        with running() as request:
            transaction.set_autocommit(False)
            take(1)
            assert request.statements.outcome == "open"
            request.cancel()
            # PostgreSQL's drivers refuse to change it during a transaction.
            with pytest.raises(django.db.Error):
                end()
            transaction.rollback()
            assert request.statements.outcome == "rolled back"
            connections["default"].close()
    assert amounts() == [100, 100]


def test_switching_autocommit_on_commits_on_mysql_and_is_recorded(mariadb: dict[str, str]) -> None:
    with guarded(django_databases.mysql(connect_settings(mariadb))), running() as request:
        transaction.set_autocommit(False)
        take(1)
        transaction.set_autocommit(True)
        assert request.statements.outcome == "committed"
        assert amounts() == [0, 100]


def test_waiting_for_a_row_that_is_locked_ends_with_the_request(guard: DjangoGuard) -> None:
    def lock() -> None:
        with closing(connections["default"]), transaction.atomic():
            Account.objects.select_for_update().get(pk=1)

    with running(), closing(connections["default"]), transaction.atomic():
        Account.objects.select_for_update().get(pk=1)
        request, worker = in_request(lock)
        wait_until(lambda: any("FOR UPDATE" in each.sql for each in request.statements.latest), "it waits")
        request.cancel()
        worker.join()
        assert isinstance(worker.error, django.db.OperationalError)
    assert amounts() == [100, 100]


def test_procedures_are_statements(mariadb: dict[str, str]) -> None:
    with guarded(django_databases.mysql(connect_settings(mariadb))), connections["default"].cursor() as outside:
        outside.execute("CREATE OR REPLACE PROCEDURE take_all() UPDATE tests_account SET amount = 0")
        with running() as request, connections["default"].cursor() as cursor:
            request.cancel()
            with pytest.raises(django.db.OperationalError):
                cursor.callproc("take_all")
        assert amounts() == [100, 100]
        with running() as request, connections["default"].cursor() as cursor:
            cursor.callproc("take_all")
            assert [each.sql for each in request.statements.latest] == ["CALL take_all"]
        assert amounts() == [0, 0]
        with connections["default"].cursor() as cursor:
            cursor.execute("DROP PROCEDURE take_all")


def test_cursors_are_freed_as_soon_as_they_are_forgotten(guard: DjangoGuard) -> None:
    with running():
        cursor = connections["default"].cursor()
        cursor.execute("SELECT 1")
        freed = weakref.ref(cursor)
        gc.disable()
        try:
            del cursor
            assert freed() is None
        finally:
            gc.enable()


# What is recorded, and for whom.


def test_statements_are_recorded_without_parameters_and_without_those_of_connecting(guard: DjangoGuard) -> None:
    with running() as request:
        Note.objects.create(text="a secret")
        [statement] = request.statements.latest
        assert "INSERT INTO" in statement.sql and "secret" not in statement.sql
        assert statement.rows == 1 and statement.connection_id
        assert guard.in_use == 1
    assert guard.in_use == 0


def test_threads_without_a_request_are_left_alone(guard: DjangoGuard) -> None:
    def work() -> list[int]:
        with closing(connections["default"]):
            with transaction.atomic():
                take(1)
            return amounts()

    seen: list[list[int]] = []
    thread = threading.Thread(target=lambda: seen.append(work()))
    with running() as request:
        request.cancel()
        thread.start()
        thread.join()
    assert seen == [[0, 100]]
    assert (guard.in_use, request.statements.count) == (0, 0)


def test_wrappers_of_the_application_see_its_statements(guard: DjangoGuard) -> None:
    seen: list[str] = []

    def wrapper(execute: Callable[..., Any], sql: str, *args: Any) -> Any:
        seen.append(sql)
        return execute(sql, *args)

    with running() as request:
        amounts()
        connection = connections["default"]
        with connection.execute_wrapper(wrapper):
            amounts()
        amounts()
        assert (len(seen), request.statements.count) == (1, 3)
        request.cancel()
        with pytest.raises(django.db.OperationalError), connection.execute_wrapper(wrapper):
            amounts()
        assert len(seen) == 1


# Connections that outlive requests.


def test_a_kept_connection_is_lent_to_each_request_and_replaced_once_a_statement_was_stopped(
    mariadb: dict[str, str],
) -> None:
    entry = django_databases.mysql(connect_settings(mariadb), CONN_MAX_AGE=None)
    with guarded(entry) as guard:
        numbers = []
        for _ in range(2):
            with running() as request:
                amounts()
                numbers.append(request.statements.latest[-1].connection_id)
        assert numbers[0] == numbers[1]
        with running() as request:
            stopping = InThread(lambda: cancel_when_it_computes(request))
            with pytest.raises(django.db.OperationalError), connections["default"].cursor() as cursor:
                cursor.execute(COMPUTE)
            stopping.join()
        assert connections["default"].connection is None
        with running() as request:
            assert amounts() == [100, 100]
            assert request.statements.latest[-1].connection_id not in numbers
        assert guard.in_use == 0


def test_a_connection_made_before_the_guard_is_tracked_from_the_next_request_on(mariadb: dict[str, str]) -> None:
    entry = django_databases.mysql(connect_settings(mariadb), CONN_MAX_AGE=None)
    with django_databases.database("default", entry), tables("default"):
        Account.objects.create(amount=1)
        for _ in range(2):
            with closing(DjangoGuard("default")) as guard, running() as request:
                assert amounts() == [1]
                assert (request.statements.count, guard.in_use) == (1, 1)
                request.cancel()
                with pytest.raises(django.db.OperationalError):
                    amounts()
            amounts()


def test_a_severed_connection_is_replaced_for_the_next_request(guard: DjangoGuard) -> None:
    with running() as request:
        amounts()
        assert guard.abandon(request) == (1, 0)
        assert guard.in_use == 0
        with pytest.raises(django.db.Error):
            amounts()
    with running():
        assert amounts() == [100, 100]
        connections["default"].close()


def test_django_replaces_a_connection_that_was_lost(mariadb: dict[str, str]) -> None:
    entry = django_databases.mysql(connect_settings(mariadb), CONN_MAX_AGE=None)
    with guarded(entry) as guard, closing(MySQLdb.connect(**connect_settings(mariadb))) as other:
        with running() as request:
            amounts()
            other.cursor().execute(f"KILL {request.statements.latest[-1].connection_id}")
            with pytest.raises(django.db.OperationalError) as raised:
                amounts()
            assert guard.is_outage(raised.value) and guard.is_lost(raised.value)
        connections["default"].close_if_unusable_or_obsolete()
        with running():
            assert amounts() == [100, 100]


# Several databases.


def test_databases_with_a_router_have_a_guard_each(
    mariadb: dict[str, str], postgresql: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(django_databases.routes, "Note", "notes")
    asked: list[str] = []
    first = django_databases.mysql(connect_settings(mariadb))
    second = django_databases.postgresql(postgresql)
    with (
        guarded(first, on_ask=lambda guard, request: asked.append("default")) as default,
        guarded(second, "notes", on_ask=lambda guard, request: asked.append("notes")) as notes,
    ):
        with running() as request:
            Note.objects.create(text="here")
            assert (asked, default.in_use, notes.in_use) == (["notes"], 0, 1)
            with pytest.raises(django.db.OperationalError), transaction.atomic(), transaction.atomic(using="notes"):
                take(1)
                Note.objects.create(text="there")
                request.cancel()
            assert request.statements.outcome == "partly committed"
        assert amounts() == [100, 100]
        assert [note.text for note in Note.objects.all()] == ["here"]
        for alias in ("default", "notes"):
            connections[alias].close()


def test_descriptions_hide_passwords_and_sizes_are_those_of_the_pools(
    mariadb: dict[str, str], postgresql: dict[str, str]
) -> None:
    settings = connect_settings(mariadb)
    with django_databases.database("one", django_databases.mysql(settings)):
        guard = DjangoGuard("one")
        assert guard.name == f"Django database 'one': mysql {settings['unix_socket']}/{settings['database']}"
        assert guard.size == 0
        with pytest.raises(ValueError, match="belongs to another Bridge"):
            DjangoGuard(connections["one"])
        guard.close()
        assert "one" not in guards
        DjangoGuard(connections["one"]).close()
    pooled = django_databases.postgresql(postgresql, OPTIONS={"pool": {"min_size": 1, "max_size": 7}})
    with django_databases.database("two", pooled), closing(DjangoGuard("two")) as guard:
        assert guard.size == 7


def test_what_cannot_be_guarded_is_refused(monkeypatch: pytest.MonkeyPatch, mariadb: dict[str, str]) -> None:
    with django_databases.database("one", {}), pytest.raises(ValueError, match="no ENGINE"):
        DjangoGuard("one")
    with django_databases.database("two", django_databases.mysql(connect_settings(mariadb))):
        monkeypatch.delattr("django.db.backends.base.base.BaseDatabaseWrapper.make_debug_cursor")
        with pytest.raises(ValueError, match=r"no make_debug_cursor; threadbridge supports Django 4\.2 to 5\.2"):
            DjangoGuard("two")


def test_a_django_without_its_list_of_pools_is_refused(
    monkeypatch: pytest.MonkeyPatch, postgresql: dict[str, str]
) -> None:
    with django_databases.database("one", django_databases.postgresql(postgresql)):
        monkeypatch.delattr("django.db.backends.postgresql.base.DatabaseWrapper._connection_pools")
        with pytest.raises(ValueError, match="no _connection_pools; threadbridge supports"):
            DjangoGuard("one")
        monkeypatch.undo()


def test_databases_are_found_by_their_aliases(mariadb: dict[str, str], postgresql: dict[str, str]) -> None:
    pooled = django_databases.postgresql(postgresql, OPTIONS={"pool": {"max_size": 7}})
    with django_databases.database("default", django_databases.mysql(connect_settings(mariadb))):
        assert django_kind.pools_of(connections) == {"": connections["default"]}
        with django_databases.database("other", pooled):
            found = django_kind.pools_of(connections)
            assert found == {"default": connections["default"], "other": connections["other"]}
            assert [django_kind.size(each) for each in found.values()] == [0, 7]
            assert django_kind.describe(found["default"]).endswith(", a connection for each thread")
            assert django_kind.describe(found["other"]).endswith("/postgres, 7 connections")
        assert django_kind.pools_of(django.db.connection) == {"": connections["default"]}
        django_kind.guard(connections["default"], nobody_asked).close()


# Psycopg's pool.


def test_waiting_while_the_pool_cannot_connect_ends_with_the_request(postgresql: dict[str, str]) -> None:
    entry = django_databases.postgresql(postgresql, OPTIONS={"pool": {"min_size": 1, "max_size": 2}})
    with django_databases.database("lost", {**entry, "NAME": "missing"}), closing(DjangoGuard("lost")) as guard:
        request, worker = in_request(lambda: connections["lost"].ensure_connection())
        hand_out: Any = guard._hand_out
        wait_until(lambda: hand_out.line.entering == 1, "it waits")
        request.cancel()
        worker.thread.join(2)
        assert isinstance(worker.error, django.db.OperationalError)
        assert "cancelled" in str(worker.error)


def test_the_pool_is_as_large_as_before_after_a_thread_that_was_given_up_came_back(
    postgresql: dict[str, str],
) -> None:
    entry = django_databases.postgresql(postgresql, OPTIONS={"pool": {"min_size": 1, "max_size": 1}})
    with guarded(entry) as guard:
        pool = connections["default"].pool
        with running() as request:
            amounts()
            guard.abandon(request)
            assert guard.in_use == 0
            _, other = in_request(lambda: (amounts(), connections["default"].close()))
            other.join()
            assert other.error is None
            connections["default"].close()
            assert (guard.size, guard.in_use) == (1, 0)
            # The one that was cut has not come back to the pool.
            assert pool.get_stats().get("returns_bad", 0) == 0
        with running():
            assert amounts() == [100, 100]
            connections["default"].close()


# Over HTTP.


@pytest.mark.parametrize("atomic_requests", [False, True])
def test_clients_that_leave_leave_no_half_transaction(entry: Entry, atomic_requests: bool) -> None:
    with django_databases.database("default", {**entry, "ATOMIC_REQUESTS": atomic_requests}), tables("default"):
        Account.objects.bulk_create([Account(pk=number, amount=100) for number in range(1, 6)])
        connections["default"].close()
        with BridgeThread(get_wsgi_application(), threads=4) as server, closing(DjangoGuard("default")) as guard:
            chance = random.Random(1)
            for _ in range(300):
                source, target = chance.sample(range(1, 6), 2)
                client = server.send(f"GET /transfer/{source}/{target} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
                client.settimeout(chance.random() / 50)
                with contextlib.suppress(TimeoutError):
                    client.recv(1000)
                reset(client)
            response, body = server.request(path="/transfer/1/2")
            assert (response.status, body) == (200, b"done")
            wait_until(lambda: guard.in_use == 0, "all connections are back")
            wait_until(lambda: server.bridge.lanes[-1].busy == 0, "all requests have ended")
        expected = dict.fromkeys(range(1, 6), 100)
        for text in Note.objects.values_list("text", flat=True):
            source, target = map(int, re.findall(r"\d+", text))
            expected[source] -= 1
            expected[target] += 1
        assert dict(Account.objects.values_list("pk", "amount")) == expected
        assert expected != dict.fromkeys(range(1, 6), 100)


def test_the_query_of_a_client_that_leaves_is_stopped(entry: Entry) -> None:
    is_mysql = entry["ENGINE"].endswith("mysql")
    sql = COMPUTE if is_mysql else PostgreSQL.compute
    listed = (
        "SELECT COUNT(*) FROM information_schema.processlist WHERE info LIKE 'SELECT SUM%'"
        if is_mysql
        else "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE 'SELECT count(*) FROM gen%'"
    )

    def count() -> int:
        with connections["default"].cursor() as cursor:
            cursor.execute(listed)
            return int(cursor.fetchone()[0])

    with django_databases.database("default", entry), closing(DjangoGuard("default")):
        with BridgeThread(get_wsgi_application(), threads=2) as server:
            path = f"/query/default?sql={urllib.parse.quote(sql)}"
            client = server.send(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            wait_until(lambda: count() == 1, "it runs")
            reset(client)
            wait_until(lambda: count() == 0, "it is stopped")
        connections["default"].close()


def test_the_example_stops_a_report_and_keeps_answering(mariadb: dict[str, str], postgresql: dict[str, str]) -> None:
    settings = connect_settings(mariadb)
    environment = {
        "MYSQL_HOST": settings["unix_socket"],
        "MYSQL_USER": settings["user"],
        "MYSQL_PASSWORD": settings["password"],
        "MYSQL_DATABASE": settings["database"],
        **postgresql,
    }
    server = postgresql
    with (
        psycopg.connect(host=server["PGHOST"], user=server["PGUSER"], dbname="postgres", autocommit=True) as witness,
        closing(MySQLdb.connect(**settings)) as other,
    ):

        def running_reports() -> int:
            sql = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE 'SELECT pg_sleep%'"
            return int(witness.execute(sql).fetchall()[0][0])

        try:
            with Frontend(("docs/examples/django_databases.py", "{port}"), env=environment) as site:
                with socket.create_connection(("127.0.0.1", site.port)) as client:
                    client.sendall(b"GET /reports/60 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
                    wait_until(lambda: running_reports() == 1, "the report is made")
                    assert requests.get(f"{site.url}/orders", timeout=10).text == "1 orders\n"
                wait_until(lambda: running_reports() == 0, "it is stopped")
                assert witness.execute("SELECT * FROM reports_report").fetchall() == []
                assert requests.get(f"{site.url}/reports/0", timeout=10).text.endswith(": 1 orders\n")
        finally:
            witness.execute("DROP TABLE IF EXISTS reports_report")
            other.cursor().execute("DROP TABLE IF EXISTS shop_order")
