"""Faults of the database: of the server, and of its statements."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from typing import Any

import MySQLdb

from tests.faults.fault import Fault, as_root, pause
from tests.faults.site import Site


def database_killed(site: Site, chance: random.Random) -> None:
    site.restart_database()


def database_stands_still(site: Site, chance: random.Random) -> None:
    pid = site.database_pid
    os.kill(pid, signal.SIGSTOP)
    try:
        pause(chance, 0.5, 6)
    finally:
        os.kill(pid, signal.SIGCONT)


def no_connection_left(site: Site, chance: random.Random) -> None:
    with set_globally(site, "max_connections", 10) as cursor, ExitStack() as taken:
        cursor.execute("SELECT id FROM information_schema.processlist WHERE user = 'myapplication'")
        for (number,) in cursor.fetchall():
            with suppress(MySQLdb.OperationalError):
                cursor.execute("KILL %s", (number,))
        with suppress(MySQLdb.OperationalError):
            for _ in range(12):
                taken.enter_context(closing(site.connect()))
        pause(chance, 1, 4)


def read_only(site: Site, chance: random.Random) -> None:
    with set_globally(site, "read_only", 1):
        pause(chance, 0.5, 2)


@contextmanager
def set_globally(site: Site, variable: str, value: int) -> Iterator[Any]:
    """A cursor of the database's administrator, while a variable of the server has another value."""
    with as_root(site) as cursor:
        cursor.execute(f"SELECT @@GLOBAL.{variable}")
        [(before,)] = cursor.fetchall()
        cursor.execute(f"SET GLOBAL {variable} = %s", (value,))
        try:
            yield cursor
        finally:
            # A server that was started again meanwhile has its own value.
            with suppress(MySQLdb.Error):
                cursor.execute(f"SET GLOBAL {variable} = %s", (before,))


def administrator_kills(site: Site, chance: random.Random) -> None:
    with as_root(site) as cursor:
        for _ in range(chance.randrange(5, 30)):
            cursor.execute("SELECT id FROM information_schema.processlist WHERE user = 'myapplication'")
            numbers = [number for (number,) in cursor.fetchall()]
            if numbers:
                with suppress(MySQLdb.OperationalError):
                    cursor.execute(chance.choice(("KILL %s", "KILL QUERY %s")), (chance.choice(numbers),))
            pause(chance, 0.01, 0.1)


def rows_locked(site: Site, chance: random.Random) -> None:
    with as_root(site) as cursor:
        cursor.execute("BEGIN")
        cursor.execute("SELECT * FROM accounts WHERE id IN (1, 2, 3) FOR UPDATE")
        # Longer than the deadline, sometimes.
        pause(chance, 1, 12)
        cursor.execute("ROLLBACK")


def deadlocks(site: Site, chance: random.Random) -> None:
    with as_root(site) as cursor:
        until = time.monotonic() + chance.uniform(1, 3)
        while time.monotonic() < until:
            with suppress(MySQLdb.OperationalError):
                cursor.execute("BEGIN")
                for number in chance.sample(range(1, 21), 6):
                    cursor.execute("UPDATE accounts SET amount = amount WHERE id = %s", (number,))
                cursor.execute("ROLLBACK")


SERVER: tuple[Fault, ...] = (database_killed, database_stands_still, no_connection_left, read_only)
STATEMENTS: tuple[Fault, ...] = (administrator_kills, rows_locked, deadlocks)
