"""SQLAlchemy's own promises hold under the guard."""

from __future__ import annotations

import asyncio
import functools
import gc
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any
from wsgiref.types import StartResponse, WSGIEnvironment

import MySQLdb
import pytest
import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.pool import NullPool, StaticPool

from tests.faults.line import FaultyLine
from tests.support.databases import Witness, connect_settings
from tests.support.inprocess import BridgeThread, wait_until
from tests.support.requests_in_threads import InThread, in_request, running
from threadbridge.database.pools.sqlalchemy import SQLAlchemyGuard

COMPUTE = "SELECT SUM(a.seq * b.seq) FROM seq_1_to_1000000 AS a, seq_1_to_1000000 AS b"

Make = Callable[..., tuple[sa.Engine, SQLAlchemyGuard]]


class Base(DeclarativeBase):
    pass


class Account(Base):
    __tablename__ = "orm_accounts"

    id: Mapped[int] = mapped_column(primary_key=True)
    amount: Mapped[int]


@pytest.fixture
def make(mariadb: dict[str, str]) -> Iterator[Make]:
    """Makes guarded engines, of one connection unless told otherwise."""
    made: list[tuple[sa.Engine, SQLAlchemyGuard]] = []

    def make(*, unix_socket: str = "", guarded: bool = True, **parameters: Any) -> Any:
        settings = connect_settings(mariadb)
        url = sa.URL.create(
            "mysql+mysqldb",
            settings["user"],
            settings["password"],
            database=settings["database"],
            query={"unix_socket": unix_socket or settings["unix_socket"]},
        )
        if "poolclass" not in parameters:
            parameters = {"pool_size": 1, "max_overflow": 0, **parameters}
        engine = sa.create_engine(url, **parameters)
        if not guarded:
            return engine, None
        made.append((engine, SQLAlchemyGuard(engine)))
        return made[-1]

    yield make
    for engine, guard in made:
        guard.close()
        guard.leave()
        engine.dispose()


@pytest.fixture
def line(mariadb: dict[str, str]) -> Iterator[FaultyLine]:
    """A line to the database."""
    with closing(FaultyLine(mariadb["MYSQL_UNIX_SOCKET"])) as line:
        yield line
        line.mend()


def ask(engine: sa.Engine, sql: str = "SELECT 42") -> Any:
    with engine.connect() as connection:
        return connection.execute(sa.text(sql)).scalar()


# The size, and waiting.


def test_the_size_counts_the_overflow(make: Make) -> None:
    for parameters, size in (
        ({"pool_size": 3, "max_overflow": 2}, 5),
        ({"pool_size": 3, "max_overflow": -1}, 0),
        ({"pool_size": 0}, 0),
        ({"poolclass": NullPool}, 0),
    ):
        engine, guard = make(**parameters)
        assert guard.size == size
        with running(), engine.connect(), engine.connect():
            assert guard.in_use == 2
        assert guard.in_use == 0


def test_the_name_has_no_password(make: Make, mariadb: dict[str, str]) -> None:
    _, guard = make()
    assert guard.name.startswith("SQLAlchemy engine mysql+mysqldb://")
    assert connect_settings(mariadb)["password"] not in guard.name


def test_waiting_ends_with_the_pools_timeout(make: Make) -> None:
    engine, guard = make(pool_timeout=0.2)
    with running(), engine.connect() as connection:
        connection.execute(sa.text("SELECT 1"))
        worker = InThread(lambda: ask(engine))
        worker.join()
        assert isinstance(worker.error, sa.exc.TimeoutError)
        assert "all 1 connections" in str(worker.error) and "0.2 s" in str(worker.error)
        assert guard.is_outage(worker.error)
    assert ask(engine) == 42


def test_threads_get_connections_in_the_order_in_which_they_asked(make: Make) -> None:
    engine, guard = make()
    order: list[int] = []

    def serve(number: int) -> None:
        with engine.connect() as connection:
            order.append(number)
            connection.execute(sa.text("SELECT 1"))

    with running(), engine.connect():
        workers = []
        for number in range(5):
            workers.append(in_request(functools.partial(serve, number))[1])
            wait_until(lambda: len(guard._line) == len(workers), "it waits")
    for worker in workers:
        worker.join()
    assert order == [0, 1, 2, 3, 4]


def test_a_request_that_holds_a_connection_may_get_another_before_those_that_wait(make: Make) -> None:
    engine, _ = make(pool_size=2)
    with running(), engine.connect():
        with engine.connect() as second:
            _, worker = in_request(lambda: ask(engine))
            second.execute(sa.text("SELECT 1"))
        worker.join()
        assert worker.result == 42


# Connections that fail.


def test_nothing_is_counted_when_connecting_fails(make: Make) -> None:
    engine, guard = make(unix_socket="/nowhere", pool_size=2)
    for _ in range(5):
        with running(), pytest.raises(sa.exc.OperationalError) as caught:
            ask(engine)
        assert guard.is_outage(caught.value)
    assert (guard.in_use, guard._line.entering, guard._by_request) == (0, 0, {})


def test_nothing_is_counted_when_a_listener_refuses_a_connection(make: Make) -> None:
    engine, guard = make()

    @sa.event.listens_for(engine, "checkout")
    def refuse(*arguments: object) -> None:
        raise RuntimeError("not today")

    for _ in range(3):
        with running(), pytest.raises(RuntimeError):
            ask(engine)
    assert (guard.in_use, guard._line.entering) == (0, 0)
    sa.event.remove(engine, "checkout", refuse)
    with running():
        assert ask(engine) == 42


def test_a_request_can_be_cut_while_it_connects(make: Make, line: FaultyLine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("threadbridge.database.stopper.SEVER_AFTER", 1.0)
    monkeypatch.setattr("threadbridge.database.stopper.ATTEMPT_TIMEOUT", 0.8)
    engine, guard = make(unix_socket=line.path)
    line.swallow_at(b"SET NAMES")
    request, worker = in_request(lambda: ask(engine))
    wait_until(lambda: line.swallowed == 1, "it connects")
    request.cancel()
    worker.join()
    assert isinstance(worker.error, sa.exc.OperationalError)
    line.mend()
    assert (guard.in_use, ask(engine)) == (0, 42)


def test_a_request_that_waits_gets_the_connection_of_one_that_never_finishes_connecting(
    make: Make, line: FaultyLine
) -> None:
    engine, guard = make(unix_socket=line.path)
    line.swallow(new=True)
    stuck, connecting = in_request(lambda: ask(engine))
    wait_until(lambda: line.swallowed > 0 and guard.in_use == 1, "it connects")
    _, waiting = in_request(lambda: ask(engine))
    wait_until(lambda: len(guard._line) == 1, "it waits")
    line.swallow(new=False)
    assert guard.abandon(stuck) == (1, 0)
    waiting.join()
    # While the other thread still tries, whose place in its pool is not free.
    assert (waiting.result, guard.in_use, guard.size) == (42, 0, 1)
    stuck.cancel()
    line.mend()
    connecting.join()
    assert isinstance(connecting.error, sa.exc.OperationalError)
    assert (ask(engine), guard.in_use) == (42, 0)


def test_a_ping_before_use_replaces_a_connection_that_the_server_has_closed(make: Make, witness: Witness) -> None:
    engine, guard = make(pool_pre_ping=True)
    number = ask(engine, "SELECT CONNECTION_ID()")
    witness.rows(f"KILL {number}")
    with running() as request:
        assert ask(engine, "SELECT CONNECTION_ID()") != number
        assert [each.error for each in request.statements.latest] == [""]
    assert guard.in_use == 0


def test_a_request_can_be_cut_while_it_pings(make: Make, line: FaultyLine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("threadbridge.database.stopper.SEVER_AFTER", 1.0)
    monkeypatch.setattr("threadbridge.database.stopper.ATTEMPT_TIMEOUT", 0.8)
    engine, guard = make(unix_socket=line.path, pool_pre_ping=True)
    ask(engine)
    line.swallow(new=False)
    request, worker = in_request(lambda: ask(engine))
    wait_until(lambda: bool(guard._by_request), "it pings")
    request.cancel()
    worker.join()
    assert isinstance(worker.error, sa.exc.OperationalError)
    line.mend()
    assert (guard.in_use, ask(engine)) == (0, 42)


def test_a_connection_of_the_applications_own_function_is_guarded(
    make: Make, mariadb: dict[str, str], witness: Witness
) -> None:
    engine, guard = make(creator=lambda: MySQLdb.connect(**connect_settings(mariadb)))
    request, worker = in_request(lambda: ask(engine, COMPUTE))
    witness.wait_for("seq_1_to_1000000")
    request.cancel()
    worker.join()
    assert isinstance(worker.error, sa.exc.OperationalError)
    wait_until(lambda: witness.running == [], "it is stopped")
    assert guard.in_use == 0


# Other ways to use an engine.


def test_a_statement_on_a_raw_connection_is_stopped(make: Make, witness: Witness) -> None:
    engine, guard = make()

    def compute() -> None:
        with closing(engine.raw_connection()) as connection:
            connection.cursor().execute(COMPUTE)

    request, worker = in_request(compute)
    witness.wait_for("seq_1_to_1000000")
    request.cancel()
    worker.join()
    assert isinstance(worker.error, MySQLdb.OperationalError)
    assert guard.in_use == 0


def test_disposing_of_an_engine_while_requests_run_loses_and_confuses_nothing(make: Make) -> None:
    engine, guard = make(pool_size=2)
    with running(), engine.connect() as connection:
        number = connection.execute(sa.text("SELECT CONNECTION_ID()")).scalar()
        engine.dispose()
        _, worker = in_request(lambda: ask(engine, "SELECT CONNECTION_ID()"))
        worker.join()
        assert worker.result not in (None, number)
        assert connection.execute(sa.text("SELECT CONNECTION_ID()")).scalar() == number
        assert guard.in_use == 1
    assert guard.in_use == 0
    assert ask(engine) == 42


def test_a_detached_connection_no_longer_counts(make: Make) -> None:
    engine, guard = make()
    with running(), engine.connect() as connection:
        connection.detach()
        assert guard.in_use == 0
        assert ask(engine) == 42
        assert connection.execute(sa.text("SELECT 1")).scalar() == 1
    assert guard.in_use == 0


def test_a_forgotten_connection_does_not_hold_up_the_loop(make: Make, line: FaultyLine) -> None:
    engine, guard = make(unix_socket=line.path)
    connection = engine.connect()
    connection.execute(sa.text("CREATE TEMPORARY TABLE t (n INTEGER)"))
    line.swallow(new=False)

    async def forget() -> None:
        nonlocal connection
        del connection
        gc.collect()

    worker = InThread(lambda: asyncio.run(forget()))
    worker.join()
    assert worker.error is None
    line.mend()
    assert guard.in_use == 0
    assert ask(engine) == 42


def test_a_pool_that_commits_on_return_does_not_commit_for_a_cancelled_request(make: Make, witness: Witness) -> None:
    engine, _ = make(pool_reset_on_return="commit")
    with running() as request:
        connection = engine.raw_connection()
        connection.cursor().execute("INSERT INTO notes VALUES ('half')")
        request.cancel()
        connection.close()
    assert witness.notes == []
    with running():
        connection = engine.raw_connection()
        connection.cursor().execute("INSERT INTO notes VALUES ('whole')")
        connection.close()
    assert witness.notes == ["whole"]


def test_a_session_of_a_cancelled_request_is_rolled_back_and_the_next_one_reads_the_database(make: Make) -> None:
    engine, _ = make()
    Base.metadata.drop_all(engine)
    Base.metadata.create_all(engine)
    with Session(engine) as session, session.begin():
        session.add(Account(id=1, amount=100))
    with running() as request:
        session = Session(engine)
        account = session.get_one(Account, 1)
        account.amount = 50
        session.flush()
        request.cancel()
        with pytest.raises(sa.exc.OperationalError):
            session.commit()
        session.close()
        assert request.statements.outcome == "rolled back"
    with running(), Session(engine) as session:
        assert session.get_one(Account, 1).amount == 100


def test_only_what_is_open_is_rolled_back(make: Make, witness: Witness) -> None:
    engine, _ = make()

    def rollbacks() -> int:
        with closing(engine.raw_connection()) as connection, closing(connection.cursor()) as cursor:
            cursor.execute("SHOW SESSION STATUS LIKE 'Com_rollback'")
            [(_, count)] = cursor.fetchall()
            return int(count)

    def read() -> None:
        with Session(engine) as session:
            session.execute(sa.text("SELECT 42"))

    def change() -> None:
        with Session(engine) as session, session.begin():
            session.execute(sa.text("INSERT INTO notes VALUES ('committed')"))

    for use, expected in ((read, 1), (change, 0), (lambda: engine.raw_connection().close(), 0)):
        before = rollbacks()
        for _ in range(3):
            use()
        # One ends what `rollbacks` has read.
        assert rollbacks() - before == 3 * expected + 1, use


def test_what_a_raw_connection_leaves_open_is_rolled_back(make: Make, witness: Witness) -> None:
    engine, _ = make()
    for _ in range(2):
        with closing(engine.raw_connection()) as connection, closing(connection.cursor()) as cursor:
            cursor.execute("INSERT INTO notes VALUES ('left open')")
    assert ask(engine, "SELECT COUNT(*) FROM notes WHERE note = 'left open'") == 0
    assert witness.notes == []


def test_engines_with_options_of_their_own_share_the_guard(make: Make) -> None:
    engine, guard = make()
    other = engine.execution_options(isolation_level="AUTOCOMMIT")
    with running() as request:
        ask(other, "SELECT 1")
        assert request.statements.count > 0
        request.cancel()
        with pytest.raises(sa.exc.OperationalError):
            ask(other)
    assert guard.in_use == 0


# The guard itself.


def test_an_engine_belongs_to_one_guard_at_a_time(make: Make) -> None:
    engine, guard = make()
    with pytest.raises(ValueError, match="another Bridge"):
        SQLAlchemyGuard(engine)
    guard.close()
    second = SQLAlchemyGuard(engine)
    with running() as request:
        assert ask(engine) == 42
        assert request.statements.latest[-1].sql == "SELECT 42"
        assert (guard.in_use, second.in_use) == (0, 0)
    second.close()
    second.leave()
    with running() as request:
        assert ask(engine) == 42
        assert request.statements.count == 0


def test_one_connection_for_all_is_refused() -> None:
    with pytest.raises(ValueError, match="StaticPool"):
        SQLAlchemyGuard(sa.create_engine("sqlite://", poolclass=StaticPool))


@pytest.mark.parametrize("name", ["_max_overflow", "_pre_ping", "_recycle"])
def test_an_sqlalchemy_that_differs_is_refused(make: Make, name: str) -> None:
    engine, _ = make(guarded=False)
    delattr(engine.pool, name)
    with pytest.raises(ValueError, match=rf"SQLAlchemy has no {name}; threadbridge supports SQLAlchemy 2\.0 and 2\.1"):
        SQLAlchemyGuard(engine)


def test_a_forked_process_has_connections_of_its_own(make: Make) -> None:
    def application(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        start_response("204 No Content", [])
        return []

    engine, guard = make()
    with BridgeThread(application, threads=1) as server:
        # From its first request on, a server takes care of forked processes.
        assert server.request()[0].status == 204
        with running(), engine.connect() as connection:
            number = connection.execute(sa.text("SELECT CONNECTION_ID()")).scalar()
            child = os.fork()
            if not child:
                try:
                    fine = guard.in_use == 0 and ask(engine, "SELECT CONNECTION_ID()") != number
                    os._exit(42 if fine else 1)
                finally:
                    os._exit(1)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 42
            assert connection.execute(sa.text("SELECT CONNECTION_ID()")).scalar() == number


def test_threads_that_make_the_first_connections_at_once_are_all_served(make: Make) -> None:
    for _ in range(10):
        engine, guard = make(pool_size=5)
        barrier = threading.Barrier(5)

        def serve(engine: sa.Engine = engine, barrier: threading.Barrier = barrier) -> Any:
            barrier.wait(10)
            return ask(engine)

        workers = [in_request(serve)[1] for _ in range(5)]
        for worker in workers:
            worker.join()
            assert worker.result == 42, worker.error
        assert (guard.in_use, guard._line.entering) == (0, 0)
