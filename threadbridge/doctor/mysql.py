"""``--check`` on MySQL and MariaDB."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from threadbridge.database.driver import ConnectionSettings, StopFailed
from threadbridge.database.drivers.mysql import MySQL
from threadbridge.doctor.finding import Finding, Level

# Seconds that the test query runs unless it is stopped, and seconds between attempts to stop it.
SLEEP = 3
KILL_AGAIN_AFTER = 0.1
# Seconds by which the clocks may differ.
SKEW = 2
# Besides its pool, each process has a connection for stopping queries.
CONTROL_CONNECTIONS = 1

_ADVICE = {
    **dict.fromkeys(
        (2002, 2003, 2005, 2006, 2013),
        "check whether the server runs, and whether the host and port, or the path of the socket, are right",
    ),
    **dict.fromkeys(
        (1045, 1130, 1698),
        "check whether the user and the password are right, and whether the user may connect from this host",
    ),
    **dict.fromkeys((1044, 1049, 1142), "check the name of the database, and the user's privileges on it"),
    **dict.fromkeys(
        (1040, 1203, 1226), "raise max_connections or the user's own limit, or find out who uses all the connections"
    ),
}


class Load(NamedTuple):
    """The load that the database must bear.

    :param processes: how many processes like this one use it.
    :param connections: how many connections each of their pools may have.
    :param longest_request: seconds that a request may take until its response begins.
    """

    processes: int
    connections: int
    longest_request: float


def advice(error: Exception) -> str:
    """What to do about an error of the driver's."""
    number = error.args[0] if error.args else 0
    return _ADVICE.get(number, "look into the database server's log, and check how the application connects")


class MySQLChecks:
    """The checks, in order, each with the name of its subject. Any thread may run them, one at a time."""

    def __init__(self, driver: str, settings: ConnectionSettings, connection: Any, load: Load) -> None:
        self._driver = driver
        self._settings = settings
        self._connection = connection
        self._load = load
        self.all: Sequence[tuple[str, Callable[[], Finding]]] = (
            ("database", self._version),
            ("connections", self._connections),
            ("idle connections", self._idle_connections),
            ("stopping queries", self._stopping),
            ("clock", self._clock),
            ("time zone", self._time_zone),
        )

    def _row(self, sql: str) -> tuple[Any, ...]:
        cursor = self._connection.cursor()
        try:
            cursor.execute(sql)
            row = cursor.fetchone()
        finally:
            cursor.close()
        # The application's cursor class may give dictionaries.
        return tuple(row.values()) if isinstance(row, dict) else tuple(row)

    def _version(self) -> Finding:
        version, user = self._row("SELECT VERSION() AS version, CURRENT_USER() AS user")
        return Finding("database", Level.OK, f"{version} answers; connected as {user}")

    def _connections(self) -> Finding:
        allowed, allowed_to_user = self._row("SELECT @@max_connections AS a, @@session.max_user_connections AS b")
        connected = int(self._row("SHOW GLOBAL STATUS LIKE 'Threads_connected'")[1])
        # This user's connections are this check's, or those of processes like this one, which are counted already.
        [own] = self._row(
            "SELECT COUNT(*) AS own FROM information_schema.processlist "
            "WHERE user = SUBSTRING_INDEX(CURRENT_USER(), '@', 1)"
        )
        others = max(0, connected - own)
        processes, in_pool = self._load.processes, self._load.connections
        needed = processes * (in_pool + CONTROL_CONNECTIONS)
        use = (
            f"{needed} are needed (processes: {processes}, each with {in_pool} in its pool and {CONTROL_CONNECTIONS} "
            "for stopping queries)"
        )
        limits = f"max_connections is {allowed}, of which other programs use {others} now"
        too_few, limit = needed - (allowed - others), "max_connections"
        if allowed_to_user and needed - allowed_to_user > too_few:
            limits = f"max_user_connections is {allowed_to_user}"
            too_few, limit = needed - allowed_to_user, "max_user_connections"
        if too_few > 0:
            return Finding(
                "connections",
                Level.ERROR,
                f"{use}, but {limits}",
                f"raise {limit} on the server by {too_few} or more, or make the pool smaller, or start fewer processes",
            )
        return Finding("connections", Level.OK, f"{use}; {limits}")

    def _idle_connections(self) -> Finding:
        [wait] = self._row("SELECT @@session.wait_timeout AS seconds")
        longest = self._load.longest_request
        if wait < longest:
            return Finding(
                "idle connections",
                Level.WARNING,
                f"wait_timeout is {wait} s, but a request may run for {longest:g} s: if it pauses for longer than "
                "wait_timeout between two queries, it loses its connection",
                f"set wait_timeout on the server to more than {longest:g} (its default is 28800), or --deadline to "
                f"less than {wait}",
            )
        return Finding(
            "idle connections",
            Level.OK,
            f"wait_timeout is {wait} s, longer than a request may run; the pool replaces connections that were closed",
        )

    def _stopping(self) -> Finding:
        """Stop a query in the way it is stopped when a client leaves."""
        database = MySQL(self._driver, self._settings)
        sleeper = self._settings.connect(*self._settings.args, **self._settings.kwargs)
        identity = database.identify(sleeper)
        ended = threading.Event()
        outcome: list[object] = []

        def sleep() -> None:
            cursor = sleeper.cursor()
            try:
                cursor.execute("SELECT SLEEP(%s) AS interrupted", (SLEEP,))
                row = cursor.fetchone()
                outcome.extend(row.values() if isinstance(row, dict) else row)
            except Exception as error:  # noqa: BLE001 - looked at below
                outcome.append(error)
            ended.set()

        begun = time.monotonic()
        threading.Thread(target=sleep, daemon=True).start()
        # An attempt that comes before the query finds nothing to stop, so there are several.
        while not ended.wait(KILL_AGAIN_AFTER):
            try:
                database.stop_query(sleeper, identity)
            except StopFailed as error:
                return Finding(
                    "stopping queries",
                    Level.ERROR,
                    f"a test query could not be stopped: {error}",
                    "each process needs one connection besides its pool, as the same user and to the same server: a "
                    "proxy that spreads connections over several servers does not work",
                )
        [result] = outcome
        # MariaDB ends a SLEEP that is stopped with an error, MySQL with the result 1.
        if result == 1 or (isinstance(result, Exception) and database.is_statement_error(result)):
            took = 1000 * (time.monotonic() - begun)
            return Finding("stopping queries", Level.OK, f"a test query was stopped, {took:.0f} ms after it began")
        return Finding(
            "stopping queries",
            Level.ERROR,
            f"a test query was told to stop, but ended with this instead: {result!r}",
            "check whether the user may KILL QUERY on its own connections",
        )

    def _clock(self) -> Finding:
        before = int(time.time())
        [theirs] = self._row("SELECT UNIX_TIMESTAMP() AS now")
        after = int(time.time())
        ahead = max(theirs - after, 0) or min(theirs - before, 0)
        if abs(ahead) > SKEW:
            return Finding(
                "clock",
                Level.WARNING,
                f"the database's clock is {abs(ahead)} s {'ahead of' if ahead > 0 else 'behind'} this machine's",
                "synchronise the clocks of both hosts by NTP: timedatectl set-ntp true",
            )
        return Finding("clock", Level.OK, "the database's clock agrees with this machine's")

    def _time_zone(self) -> Finding:
        zone, offset = self._row(
            "SELECT @@session.time_zone AS zone, TIMESTAMPDIFF(SECOND, UTC_TIMESTAMP(), NOW()) AS offset_"
        )
        ours = time.localtime().tm_gmtoff
        if offset != ours:
            return Finding(
                "time zone",
                Level.WARNING,
                f"the database's time zone ({zone}) is {_hours(offset)} from UTC, this machine's is {_hours(ours)}: "
                "NOW() and Python's datetime.now() give different hours, and at night different days",
                "set both hosts to the same time zone, or set default_time_zone on the server; or make sure that the "
                "application takes the time from only one of them",
            )
        return Finding("time zone", Level.OK, f"{_hours(ours)} from UTC, here and in the database")


def _hours(seconds: int) -> str:
    return f"{'-' if seconds < 0 else '+'}{abs(seconds) // 3600:02}:{abs(seconds) // 60 % 60:02}"
