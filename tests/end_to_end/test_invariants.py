"""Sums and rows stay exact: no statement is run twice or outside its transaction, however connections are lost."""

from __future__ import annotations

import http.client
import random
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import MySQLdb
import pytest
from dbutils.pooled_db import PooledDB

from tests.faults import application
from tests.faults.checks import books
from tests.faults.line import FaultyLine
from tests.support.databases import Witness, connect_settings
from tests.support.inprocess import BridgeThread
from tests.support.requests_in_threads import InThread

ACCOUNTS = 4
CLIENTS = 6
TRANSFERS = 25

POOLS: dict[str, dict[str, Any]] = {
    "as it comes": {},
    "autocommit": {"autocommit": True},
    "maxusage": {"maxusage": 5},
    "ping before each statement": {"ping": 7},
    "all of them": {"autocommit": True, "maxusage": 3, "ping": 2},
    "shared connections": {"maxshared": 2},
}


@pytest.fixture
def line(mariadb: dict[str, str]) -> Iterator[FaultyLine]:
    line = FaultyLine(mariadb["MYSQL_UNIX_SOCKET"])
    yield line
    line.close()


class Bank:
    """The application of `tests.faults`, served from a pool whose connections lead over the line."""

    def __init__(self, pool: Any, witness: Witness) -> None:
        self.pool = pool
        self.answered: set[int] = set()
        self.witness = witness
        self._numbers = iter(range(1, 100_000))
        witness.rows("CREATE OR REPLACE TABLE accounts (id INT PRIMARY KEY, amount INT NOT NULL) ENGINE=InnoDB")
        witness.rows(f"INSERT INTO accounts SELECT seq, 1000 FROM seq_1_to_{ACCOUNTS}")  # noqa: S608 - a number of our own
        witness.rows("CREATE OR REPLACE TABLE ledger (id BIGINT, source INT, target INT, KEY (id)) ENGINE=InnoDB")

    def ask(self, port: int, page: str, source: int, target: int) -> int:
        """Ask for one transfer; the status. Any thread."""
        number = next(self._numbers)
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request("POST", f"/{page}?id={number}&source={source}&target={target}")
        status = connection.getresponse().status
        connection.close()
        if status == 200:
            self.answered.add(number)
        return status

    @property
    def rows(self) -> int:
        """How many transfers are in the ledger."""
        return int(self.witness.rows("SELECT COUNT(*) FROM ledger")[0][0])

    @property
    def wrong(self) -> list[str]:
        """What does not agree in the books."""
        rows = self.witness.rows("SELECT id, source, target FROM ledger")
        return books(rows, dict(self.witness.rows("SELECT id, amount FROM accounts")), self.answered)


@pytest.fixture(params=POOLS)
def bank(
    request: pytest.FixtureRequest,
    mariadb: dict[str, str],
    witness: Witness,
    line: FaultyLine,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Bank]:
    settings = {**connect_settings(mariadb, line.path), "maxconnections": CLIENTS, **POOLS[request.param]}
    pool = PooledDB(MySQLdb, **settings)
    monkeypatch.setattr(application, "pool", pool)
    yield Bank(pool, witness)
    pool.close()
    for table in ("accounts", "ledger"):
        witness.rows(f"DROP TABLE {table}")


# What the application sends, one after the other.
STATEMENTS = (b"INSERT INTO ledger", b"amount - 1", b"amount + 1", b"COMMIT")


def test_a_statement_whose_reply_is_lost_has_run_once_or_is_undone(bank: Bank, line: FaultyLine) -> None:
    kept = 0
    with BridgeThread(application.app, pool=bank.pool) as server:
        for page in ("transfer", "transfer_begun", "transfer_again", "insert"):
            autocommits = page == "insert" or bank.pool._kwargs.get("autocommit", False)
            for part in STATEMENTS[:1] if page == "insert" else STATEMENTS:
                # All of the reply is lost, or it ends in the middle of a packet.
                for keep in (0, 3):
                    before = bank.rows
                    lost = line.lose_reply(part, keep)
                    status = bank.ask(server.port, page, 1, 2)
                    assert lost.happened.is_set(), (page, part)
                    # It is not known to have been done: the client must not be told that it was.
                    assert status == 503, (page, part)
                    has_been_done = part == b"COMMIT" or (page == "insert" and autocommits)
                    assert bank.rows - before == has_been_done, (page, part)
                    assert bank.ask(server.port, page, 2, 1) == 200
                    kept += 1
        assert bank.wrong == []
        assert len(bank.answered) == kept


def _kill_now_and_then(bank: Bank, killer: Witness, chance: random.Random, is_over: threading.Event) -> None:
    """As an administrator does, until it is over."""
    while not is_over.wait(0.01):
        found = [number for number in killer.connections if number != bank.witness.connection.thread_id()]
        if found:
            with suppress(MySQLdb.OperationalError):
                killer.rows(f"{chance.choice(('KILL', 'KILL QUERY'))} {chance.choice(found)}")


def _lose_replies_now_and_then(line: FaultyLine, chance: random.Random, is_over: threading.Event) -> None:
    while not is_over.wait(0.02):
        line.lose_reply(chance.choice(STATEMENTS), chance.choice((0, 3)))
    line.mend()


def test_books_agree_after_deadlocks_kills_and_lost_replies(
    bank: Bank, mariadb: dict[str, str], line: FaultyLine
) -> None:
    is_over = threading.Event()
    killer = Witness(mariadb)

    def ask(client: int) -> dict[int, int]:
        chance = random.Random(client)
        statuses: dict[int, int] = {}
        for _ in range(TRANSFERS):
            page = chance.choice(("transfer", "transfer_begun", "transfer_again", "insert"))
            source, target = chance.sample(range(1, ACCOUNTS + 1), 2)
            status = bank.ask(server.port, page, source, target)
            statuses[status] = statuses.get(status, 0) + 1
        return statuses

    with BridgeThread(application.app, pool=bank.pool) as server:
        faults = [
            InThread(lambda: _kill_now_and_then(bank, killer, random.Random(1), is_over)),
            InThread(lambda: _lose_replies_now_and_then(line, random.Random(2), is_over)),
        ]
        clients = [InThread(lambda number=number: ask(number)) for number in range(CLIENTS)]  # type: ignore[misc]
        for client in clients:
            client.thread.join(60)
        is_over.set()
        for fault in faults:
            fault.join()
            assert fault.error is None
        assert [client.error for client in clients] == [None] * CLIENTS
        found = {status for client in clients for status in client.result}
        assert found == {200, 503}
        # All is well again.
        for _ in range(2 * CLIENTS):
            assert bank.ask(server.port, "transfer", 1, 2) == 200
    assert bank.wrong == []
    killer.connection.close()
