"""``--check`` on PostgreSQL."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from threadbridge.database.drivers.control_connection import execute
from threadbridge.doctor import Finding, ok, warning
from threadbridge.doctor.load import Load

DRIVERS = ("psycopg", "psycopg2")
# What the server keeps for others, the second since PostgreSQL 16.
_RESERVED = "superuser_reserved_connections", "reserved_connections"
_TIMEOUTS = "idle_session_timeout", "idle_in_transaction_session_timeout"


class PostgreSQLChecks:
    """The checks by subject, in order. Any thread may run them, one at a time."""

    # Seconds after which the server closes an idle connection; None: never. Known after the checks.
    idle_timeout: float | None = None

    def __init__(self, connection: Any, load: Load) -> None:
        # An error in one check does not fail the next.
        connection.autocommit = True
        self._connection = connection
        self._row = partial(execute, connection)
        self._load = load
        self.all: Mapping[str, Callable[[], Finding]] = {
            "database": self._version,
            **({"connections": self._connections} if load.pools else {}),
            "idle connections": self._idle_connections,
            "stopping queries": self._stopping,
        }

    def _version(self) -> Finding:
        version, user = self._row("SELECT current_setting('server_version'), current_user")
        return ok(f"PostgreSQL {version} answers; connected as {user}")

    def _connections(self) -> Finding:
        # This user's connections are this check's, or those of processes like this one, which are counted already.
        [others] = self._row(
            "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND usename <> current_user"
        )
        others += sum(map(self._number, _RESERVED))
        of_role, of_database = self._row(
            "SELECT rolconnlimit, datconnlimit FROM pg_roles, pg_database "
            "WHERE rolname = current_user AND datname = current_database()"
        )
        own = {"the role's CONNECTION LIMIT": of_role, "the database's CONNECTION LIMIT": of_database}
        limits = {name: limit for name, limit in own.items() if limit >= 0}
        return self._load.compare("max_connections", self._number("max_connections"), others, limits)

    def _idle_connections(self) -> Finding:
        timeouts = {name: self._number(name) / 1000 for name in _TIMEOUTS}
        self.idle_timeout = timeouts["idle_session_timeout"] or None
        longest = self._load.longest_request
        for name, seconds in timeouts.items():
            if 0 < seconds < longest:
                return warning(
                    f"{name} is {seconds:g} s, but a request may run for {longest:g} s: if it pauses for longer than "
                    "that between two queries, it loses its connection",
                    f"set {name} on the server to more than {longest:g} s, or to 0, which is its default; or set "
                    f"--deadline to less than {seconds:g}",
                )
        return ok("the server closes no idle connection while a request runs")

    def _stopping(self) -> Finding:
        """Whether a proxy is in between, which only some drivers can ask to stop queries."""
        [number] = self._row("SELECT pg_backend_pid()")
        if number == self._connection.info.backend_pid:
            return ok("no proxy is in between; each connection that the pool makes gets a limit for its statements")
        cancels = hasattr(self._connection, "cancel_safe")
        limit = self._number("statement_timeout") / 1000
        if cancels and limit:
            return ok(f"by a proxy such as PgBouncer, which is in between; statement_timeout is {limit:g} s")
        problems, remedies = [], []
        if not cancels:
            problems.append("this driver cannot ask it to stop queries")
            remedies.append("use psycopg 3.2 or later")
        if not limit:
            problems.append("it would not keep a limit for statements that is set on each connection")
            seconds = math.ceil(self._load.longest_request) + 30
            remedies.append(f"run ALTER ROLE CURRENT_USER SET statement_timeout = '{seconds} s'")
        return warning(f"a proxy such as PgBouncer is in between: {', and '.join(problems)}", " and ".join(remedies))

    def _number(self, setting: str) -> int:
        """The value of one of the server's settings, in its own unit; 0 if the server has no such setting."""
        row = self._row("SELECT setting::int FROM pg_settings WHERE name = %s", setting)
        return int(row[0]) if row else 0
