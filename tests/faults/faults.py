"""The faults: what each does to the site, for how long, and how it is undone."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import MySQLdb

from tests.faults.site import Site

Fault = Callable[[Site, random.Random], None]


def _pause(chance: random.Random, shortest: float, longest: float) -> None:
    time.sleep(chance.uniform(shortest, longest))


# The line to the database.


def old_connections_swallowed(site: Site, chance: random.Random) -> None:
    site.line.swallow(new=False)
    _pause(chance, 1, 8)
    # As a firewall that has forgotten them does: they never pass again.
    site.line.cut()
    site.line.mend()


def network_gone(site: Site, chance: random.Random) -> None:
    site.line.swallow(new=True)
    _pause(chance, 0.5, 8)
    site.line.mend()


def connections_cut(site: Site, chance: random.Random) -> None:
    for _ in range(chance.randrange(1, 5)):
        site.line.cut()
        _pause(chance, 0.05, 0.5)


def replies_lost(site: Site, chance: random.Random) -> None:
    site.line.spoil_replies("lose")
    _pause(chance, 0.05, 1)
    site.line.mend()


def replies_cut(site: Site, chance: random.Random) -> None:
    site.line.spoil_replies("cut")
    _pause(chance, 0.05, 1)
    site.line.mend()


def network_slow(site: Site, chance: random.Random) -> None:
    site.line.delay(chance.uniform(0.01, 0.2))
    _pause(chance, 1, 4)
    site.line.mend()


# The database.


def database_killed(site: Site, chance: random.Random) -> None:
    site.restart_database()


def database_stands_still(site: Site, chance: random.Random) -> None:
    pid = site.database_pid
    os.kill(pid, signal.SIGSTOP)
    _pause(chance, 0.5, 6)
    os.kill(pid, signal.SIGCONT)


@contextmanager
def _as_root(site: Site) -> Iterator[Any]:
    connection = site.root()
    try:
        yield connection.cursor()
    finally:
        connection.close()


def administrator_kills(site: Site, chance: random.Random) -> None:
    with _as_root(site) as cursor:
        for _ in range(chance.randrange(5, 30)):
            cursor.execute("SELECT id FROM information_schema.processlist WHERE user = 'myapplication'")
            numbers = [number for (number,) in cursor.fetchall()]
            if numbers:
                with suppress(MySQLdb.OperationalError):
                    cursor.execute(chance.choice(("KILL %s", "KILL QUERY %s")), (chance.choice(numbers),))
            _pause(chance, 0.01, 0.1)


def no_connection_left(site: Site, chance: random.Random) -> None:
    with _as_root(site) as cursor:
        cursor.execute("SET GLOBAL max_connections = 10")
        cursor.execute("SELECT id FROM information_schema.processlist WHERE user = 'myapplication'")
        for (number,) in cursor.fetchall():
            with suppress(MySQLdb.OperationalError):
                cursor.execute("KILL %s", (number,))
        taken: list[Any] = []
        with suppress(MySQLdb.OperationalError):
            while len(taken) < 12:
                taken.append(site.connect())
        _pause(chance, 1, 4)
        for connection in taken:
            connection.close()
        cursor.execute("SET GLOBAL max_connections = 151")


def read_only(site: Site, chance: random.Random) -> None:
    with _as_root(site) as cursor:
        cursor.execute("SET GLOBAL read_only = 1")
        _pause(chance, 0.5, 2)
        cursor.execute("SET GLOBAL read_only = 0")


def rows_locked(site: Site, chance: random.Random) -> None:
    with _as_root(site) as cursor:
        cursor.execute("BEGIN")
        cursor.execute("SELECT * FROM accounts WHERE id IN (1, 2, 3) FOR UPDATE")
        # Longer than the deadline, sometimes.
        _pause(chance, 1, 12)
        cursor.execute("ROLLBACK")


def deadlocks(site: Site, chance: random.Random) -> None:
    with _as_root(site) as cursor:
        until = time.monotonic() + chance.uniform(1, 3)
        while time.monotonic() < until:
            with suppress(MySQLdb.OperationalError):
                cursor.execute("BEGIN")
                for number in chance.sample(range(1, 21), 6):
                    cursor.execute("UPDATE accounts SET amount = amount WHERE id = %s", (number,))
                cursor.execute("ROLLBACK")


# The frontend.


def logs_reopened(site: Site, chance: random.Random) -> None:
    for _ in range(10):
        os.kill(site.frontend.pid, signal.SIGHUP)
        _pause(chance, 0, 0.1)


def reloaded(site: Site, chance: random.Random) -> None:
    os.kill(site.frontend.pid, signal.SIGUSR2)
    _pause(chance, 2, 8)


def process_killed(site: Site, chance: random.Random) -> None:
    if children := site.children():
        site.kill_child(chance.choice(children))


def process_stands_still(site: Site, chance: random.Random) -> None:
    if children := site.children():
        pid = chance.choice(children)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
            _pause(chance, 0.5, 4)
            os.kill(pid, signal.SIGCONT)


def descriptors_used_up(site: Site, chance: random.Random) -> None:
    site.limit_descriptors(chance.randrange(0, 8))
    _pause(chance, 1, 4)
    site.limit_descriptors(None)


# Those that need several processes, or cost some their life, are left out with one process.
ALWAYS: tuple[Fault, ...] = (
    old_connections_swallowed,
    network_gone,
    connections_cut,
    replies_lost,
    replies_cut,
    network_slow,
    database_killed,
    database_stands_still,
    administrator_kills,
    no_connection_left,
    read_only,
    rows_locked,
    deadlocks,
    logs_reopened,
    descriptors_used_up,
)
SUPERVISED: tuple[Fault, ...] = (reloaded, process_killed, process_stands_still)
# Faults that use the same means, and so cannot be composed.
EXCLUSIVE: tuple[frozenset[Fault], ...] = (
    frozenset({old_connections_swallowed, network_gone, connections_cut, replies_lost, replies_cut, network_slow}),
    frozenset(
        {database_killed, database_stands_still, administrator_kills, no_connection_left, read_only, rows_locked}
    ),
    frozenset({reloaded, process_killed, process_stands_still, descriptors_used_up}),
)
