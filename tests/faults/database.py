"""Faults of the database: of the server, and of its statements."""

from __future__ import annotations

import os
import random
import signal
import time
from contextlib import suppress
from typing import Any

import MySQLdb

from tests.faults.fault import Fault, as_root, pause
from tests.faults.site import Site


def database_killed(site: Site, chance: random.Random) -> None:
    site.restart_database()


def database_stands_still(site: Site, chance: random.Random) -> None:
    pid = site.database_pid
    os.kill(pid, signal.SIGSTOP)
    pause(chance, 0.5, 6)
    os.kill(pid, signal.SIGCONT)


def no_connection_left(site: Site, chance: random.Random) -> None:
    with as_root(site) as cursor:
        cursor.execute("SET GLOBAL max_connections = 10")
        cursor.execute("SELECT id FROM information_schema.processlist WHERE user = 'myapplication'")
        for (number,) in cursor.fetchall():
            with suppress(MySQLdb.OperationalError):
                cursor.execute("KILL %s", (number,))
        taken: list[Any] = []
        with suppress(MySQLdb.OperationalError):
            while len(taken) < 12:
                taken.append(site.connect())
        pause(chance, 1, 4)
        for connection in taken:
            connection.close()
        cursor.execute("SET GLOBAL max_connections = 151")


def read_only(site: Site, chance: random.Random) -> None:
    with as_root(site) as cursor:
        cursor.execute("SET GLOBAL read_only = 1")
        pause(chance, 0.5, 2)
        cursor.execute("SET GLOBAL read_only = 0")


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
