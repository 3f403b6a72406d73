"""Queries are stopped by way of a connection of its own, which may fail like any other."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import MySQLdb
import pytest
from dbutils.pooled_db import PooledDB

from tests.cancelling import COUNTED_SLEEP, Application, assert_all_is_well, get, query
from tests.databases import Witness, connect_settings
from tests.inprocess import BridgeThread, wait_until


@pytest.fixture
def pool(mariadb: dict[str, str]) -> Iterator[Any]:
    pool = PooledDB(MySQLdb, maxconnections=3, **connect_settings(mariadb))
    yield pool
    pool.close()


def own_messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if record.name == "threadbridge" and record.levelno >= logging.WARNING
    ]


def set_password(witness: Witness, password: str) -> None:
    witness.connection.cursor().execute("SET PASSWORD = PASSWORD(%s)", (password,))


def test_a_control_connection_that_is_refused_is_tried_again(
    pool: Any, witness: Witness, caplog: pytest.LogCaptureFixture
) -> None:
    application = Application(lambda environ: query(pool, COUNTED_SLEEP))
    with BridgeThread(application, pool=pool) as server:
        clients = [server.send(get()) for _ in range(3)]
        wait_until(lambda: len(witness.running) == 3, "three statements run")
        set_password(witness, "another")
        try:
            for client in clients:
                client.close()
            wait_until(lambda: own_messages(caplog) != [], "the failure is logged")
        finally:
            set_password(witness, witness.settings["password"])
        wait_until(lambda: application.ended == 3, "the application is free")
        assert [error.args[0] for error in application.errors] == [1317] * 3
        assert_all_is_well(pool, witness)
        assert witness.executions == 3
    first, second = own_messages(caplog)
    assert first.startswith("cannot stop queries that nobody waits for; trying again: (1045, ")
    assert second == "queries that nobody waits for can be stopped again"


def test_the_request_is_free_even_if_the_database_has_no_connection_left(
    pool: Any, witness: Witness, caplog: pytest.LogCaptureFixture
) -> None:
    application = Application(lambda environ: query(pool, "SELECT NEXT VALUE FOR executions, SLEEP(8)"))
    others: list[Any] = []
    with BridgeThread(application, pool=pool) as server:
        clients = [server.send(get()) for _ in range(3)]
        wait_until(lambda: len(witness.running) == 3, "three statements run")
        with contextlib.suppress(MySQLdb.OperationalError):
            while True:
                others.append(MySQLdb.connect(**witness.settings))
        try:
            for client in clients:
                client.close()
            # The statements themselves go on, but nobody waits for them.
            wait_until(lambda: application.ended == 3, "the application is free")
            assert len(witness.running) == 3
            assert {error.args[0] for error in application.errors} == {2013}
            assert pool._connections == 0
        finally:
            for other in others:
                other.close()
        assert_all_is_well(pool, witness)
        assert witness.executions == 3
    [message] = own_messages(caplog)
    assert message.startswith("cannot stop queries that nobody waits for; trying again: (1040, ")


def test_a_control_connection_that_was_lost_is_made_again(pool: Any, witness: Witness) -> None:
    application = Application(lambda environ: query(pool, COUNTED_SLEEP))
    with BridgeThread(application, pool=pool) as server:
        for count in (1, 2):
            client = server.send(get())
            witness.wait_for("SLEEP(20)")
            client.close()
            wait_until(lambda count=count: application.ended == count, "the application is free")  # type: ignore[misc]
            for number in witness.connections:
                with contextlib.suppress(MySQLdb.OperationalError):
                    witness.rows(f"KILL {number}")
        assert_all_is_well(pool, witness)
        assert witness.executions == 2
