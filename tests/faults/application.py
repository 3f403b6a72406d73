"""An application that keeps accounts: each transfer is one transaction, with a row of its own in the ledger.

Served as ``python -m threadbridge tests.faults.application:app --pool=tests.faults.application:pool``. The environment
variable ``FAULTS_POOL`` has the parameters of `make_pool`, as JSON.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any
from urllib.parse import parse_qsl
from wsgiref.types import StartResponse, WSGIEnvironment

import MySQLdb
from dbutils.pooled_db import PooledDB

ACCOUNTS = 20
# Seconds that a statement waits for a lock. In the usual 50 s, those that wait for each other would stand still for
# most of a campaign.
LOCK_WAIT = 3
# What requests leave on their connections. A temporary table hides one that all need.
LEFT = (
    "SET @left = 1",
    "SET autocommit = 1 - @@autocommit",
    "SET sql_mode = ''",
    "SET time_zone = '+05:00'",
    "CREATE TEMPORARY TABLE accounts (id INT, amount INT)",
    "LOCK TABLES accounts READ",
    "SELECT GET_LOCK('left', 0)",
    "SELECT RELEASE_ALL_LOCKS()",
)
# ER_LOCK_WAIT_TIMEOUT, ER_LOCK_DEADLOCK.
DID_NOT_HAPPEN = (1205, 1213)
PLAIN = [("Content-Type", "text/plain")]


def make_pool(own_function: bool = False, **parameters: Any) -> PooledDB:
    """A pool of the driver's connections, or of those that a function of the application's makes with it."""
    return PooledDB((lambda **settings: MySQLdb.connect(**settings)) if own_function else MySQLdb, **parameters)


pool = make_pool(**json.loads(os.environ.get("FAULTS_POOL", "{}")))


def autocommits() -> bool:
    """Whether the pool's connections commit each statement that is not behind a ``begin``."""
    return bool(pool._kwargs.get("autocommit"))


class NotAsItShould(Exception):
    """The application has seen what must never be."""


def _move(connection: Any, parameters: dict[str, str], begins: bool) -> str:
    """One row and two accounts, or nothing."""
    if begins or autocommits():
        connection.begin()
    with closing(connection.cursor()) as cursor:
        number, source, target = (int(parameters[name]) for name in ("id", "source", "target"))
        cursor.execute("INSERT INTO ledger VALUES (%s, %s, %s)", (number, source, target))
        cursor.execute("UPDATE accounts SET amount = amount - 1 WHERE id = %s", (source,))
        cursor.execute("UPDATE accounts SET amount = amount + 1 WHERE id = %s", (target,))
    connection.commit()
    return "moved"


def transfer(parameters: dict[str, str]) -> str:
    """A transaction without ``begin``, as DBUtils' users write it; handing the connection back ends one that failed."""
    with closing(pool.connection()) as connection:
        return _move(connection, parameters, begins=False)


def transfer_begun(parameters: dict[str, str]) -> str:
    """The same, as DBUtils recommends it."""
    with closing(pool.connection()) as connection:
        try:
            return _move(connection, parameters, begins=True)
        except Exception:
            connection.rollback()
            raise


def transfer_again(parameters: dict[str, str]) -> str:
    """The same; after a deadlock, or when a lock is not to be had, the whole transaction is tried again."""
    with closing(pool.connection()) as connection:
        for tries_left in (2, 1, 0):
            try:
                return _move(connection, parameters, begins=False)
            except MySQLdb.OperationalError as error:
                connection.rollback()
                if error.args[0] not in DID_NOT_HAPPEN or not tries_left:
                    raise
    raise AssertionError("the last try ends or raises")


def insert(parameters: dict[str, str]) -> str:
    """One statement that is committed by itself."""
    with closing(pool.connection()) as connection, closing(connection.cursor()) as cursor:
        if not autocommits():
            cursor.execute("SET autocommit = 1")
        cursor.execute("INSERT INTO ledger VALUES (%s, 0, 0)", (int(parameters["id"]),))
    return "inserted"


def read(parameters: dict[str, str]) -> str:
    """A query that may be stopped, and repeated."""
    with closing(pool.connection()) as connection, closing(connection.cursor()) as cursor:
        cursor.execute("SELECT SUM(amount) FROM accounts")
        total = cursor.fetchone()[0]
    if total != 1000 * ACCOUNTS:
        raise NotAsItShould(f"a query saw {total} in all accounts")
    return str(total)


def slow(parameters: dict[str, str]) -> str:
    """A query that takes about so many twentieths of a second."""
    with closing(pool.connection()) as connection, closing(connection.cursor()) as cursor:
        cursor.execute("SELECT SUM(SLEEP(0.05)) FROM seq_1_to_1000 WHERE seq <= %s", (int(parameters["steps"]),))
        cursor.fetchone()
    return "slept"


def session(parameters: dict[str, str]) -> str:
    """Must find its connection as it was made, and leaves something on it."""
    with closing(pool.connection()) as connection, closing(connection.cursor()) as cursor:
        cursor.execute(
            "SELECT @left, @@autocommit, @@innodb_lock_wait_timeout, "
            "@@sql_mode = @@GLOBAL.sql_mode, @@time_zone = @@GLOBAL.time_zone"
        )
        found = cursor.fetchone()
        if found != (None, autocommits(), LOCK_WAIT, 1, 1):
            raise NotAsItShould(f"a request found {found} on its connection")
        cursor.execute(LEFT[int(parameters["id"]) % len(LEFT)])
    return "left"


def fork(parameters: dict[str, str]) -> str:
    """A child that ends in one of the ways in which children do."""
    how = int(parameters["id"]) % 4
    if how == 3:
        subprocess.run([sys.executable, "-c", "pass"], check=True)
        return "run"
    child = os.fork()
    if child == 0:
        if how == 0:
            os._exit(0)
        if how == 1:
            sys.exit(0)
        return "in the child"
    give_up = time.monotonic() + 5
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if time.monotonic() > give_up:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise NotAsItShould("a forked child that has returned does not end")
        time.sleep(0.01)
    return "forked"


def upload(parameters: dict[str, str]) -> str:
    """A large body, which `app` has read."""
    return "uploaded"


def large(parameters: dict[str, str]) -> str:
    """A response that slow clients take some time to read."""
    return "x" * 2_000_000


def crash(parameters: dict[str, str]) -> str:
    """The end of the process."""
    os.abort()


def hold(parameters: dict[str, str]) -> str:
    """Keeps the interpreter's lock for so many seconds."""
    ctypes.PyDLL(None).sleep(int(parameters["seconds"]))
    return "held"


def compute(parameters: dict[str, str]) -> str:
    """Keeps the processor for a moment."""
    until = time.monotonic() + 0.05
    while time.monotonic() < until:
        pass
    return threading.current_thread().name


PAGES: dict[str, Callable[[dict[str, str]], str]] = {
    f"/{page.__name__}": page
    for page in (
        *(transfer, transfer_begun, transfer_again, insert, read, slow, session),
        *(upload, large, fork, crash, compute, hold),
    )
}


def app(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
    """200 and a word, 503 for an error of the database, 500 for what must never be."""
    body: Any = environ["wsgi.input"].read()
    parameters = dict(parse_qsl(environ["QUERY_STRING"]))
    try:
        answer, status = PAGES[environ["PATH_INFO"]](parameters), "200 OK"
    except NotAsItShould as error:
        answer, status = f"NOT AS IT SHOULD: {error}", "500 Internal Server Error"
    except MySQLdb.Error as error:
        answer, status = f"{type(error).__name__}{error.args}", "503 Service Unavailable"
    if len(body) != int(environ.get("CONTENT_LENGTH") or 0):
        answer, status = f"NOT AS IT SHOULD: a body of {len(body)} bytes", "500 Internal Server Error"
    start_response(status, PLAIN)
    return [f"{parameters['id']} {answer}".encode()]
