"""``--check`` on MySQL and MariaDB."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from concurrent.futures import wait
from functools import partial
from typing import Any

from threadbridge.database.driver import ConnectionSettings, StopFailed
from threadbridge.database.drivers.control_connection import execute
from threadbridge.database.drivers.mysql import SHOW_LIMIT, MySQL
from threadbridge.database.drivers.mysql_errors import number_of
from threadbridge.doctor import Finding, error, in_thread, ok, warning
from threadbridge.doctor.load import Load

# Seconds that the test query runs unless it is stopped, and seconds between attempts to stop it.
SLEEP = 3
KILL_AGAIN_AFTER = 0.1
# Seconds by which the clocks may differ.
SKEW = 2
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


def advice(failure: Exception) -> str:
    """What to do about an error of the driver's."""
    return _ADVICE.get(
        number_of(failure) or 0, "look into the database server's log, and check how the application connects"
    )


class MySQLChecks:
    """The checks by subject, in order. Any thread may run them, one at a time."""

    # Seconds after which the server closes an idle connection. Known after the checks.
    idle_timeout: float | None = None
    # Whether nothing is in between that has connection ids of its own. Known after `_stopping`.
    _is_direct = True

    def __init__(self, driver: str, settings: ConnectionSettings, connection: Any, load: Load) -> None:
        self._driver = driver
        self._settings = settings
        self._row = partial(execute, connection)
        self._load = load
        self.all: Mapping[str, Callable[[], Finding]] = {
            "database": self._version,
            **({"connections": self._connections} if load.pools else {}),
            "idle connections": self._idle_connections,
            "stopping queries": self._stopping,
            "statement limit": self._statement_limit,
            "clock": self._clock,
            "time zone": self._time_zone,
        }

    def _version(self) -> Finding:
        version, user = self._row("SELECT VERSION() AS version, CURRENT_USER() AS user")
        return ok(f"{version} answers; connected as {user}")

    def _connections(self) -> Finding:
        allowed, allowed_to_user = self._row("SELECT @@max_connections AS a, @@session.max_user_connections AS b")
        connected = int(self._row("SHOW GLOBAL STATUS LIKE 'Threads_connected'")[1])
        # This user's connections are this check's, or those of processes like this one, which are counted already.
        [own] = self._row(
            "SELECT COUNT(*) AS own FROM information_schema.processlist "
            "WHERE user = SUBSTRING_INDEX(CURRENT_USER(), '@', 1)"
        )
        own_limits = {"max_user_connections": allowed_to_user} if allowed_to_user else {}
        return self._load.compare("max_connections", allowed, max(0, connected - own), own_limits)

    def _idle_connections(self) -> Finding:
        [timeout] = self._row("SELECT @@session.wait_timeout AS seconds")
        self.idle_timeout = timeout
        longest = self._load.longest_request
        if timeout < longest:
            return warning(
                f"wait_timeout is {timeout} s, but a request may run for {longest:g} s: if it pauses for longer than "
                "wait_timeout between two queries, it loses its connection",
                f"set wait_timeout on the server to more than {longest:g} (its default is 28800), or --deadline to "
                f"less than {timeout}",
            )
        return ok(f"wait_timeout is {timeout} s, longer than a request may run")

    def _stopping(self) -> Finding:
        """Stop a query as when a client leaves."""
        database = MySQL(self._driver, self._settings)
        sleeper = self._settings.connect(*self._settings.args, **self._settings.kwargs)
        identity = database.identify(sleeper)
        self._is_direct = bool(identity.server) and not identity.tag
        if identity.obstacle:
            return warning(
                f"queries cannot be stopped: {identity.obstacle}",
                "connect to the servers themselves, or through a TCP proxy such as HAProxy; until then, let the server "
                "limit the time of statements: see docs/clusters.md",
            )
        database.prepare(sleeper, identity, None)
        begun = time.monotonic()
        sleeping = in_thread(lambda: execute(sleeper, f"SELECT SLEEP({SLEEP}) AS interrupted"))
        # An attempt that comes before the query finds nothing to stop, so there are several.
        while wait([sleeping], KILL_AGAIN_AFTER).not_done:
            try:
                database.stop_query(sleeper, identity)
            except StopFailed as failure:
                return error(
                    f"a test query could not be stopped: {failure}",
                    "each process needs one connection besides its pool, as the same user and to the same server: if a "
                    "proxy is in between, the frontends must reach each server at its own address (report_host, the "
                    "cluster's address or the host name): see docs/clusters.md",
                )
        took = 1000 * (time.monotonic() - begun)
        failed = sleeping.exception()
        # MariaDB ends a SLEEP that is stopped with an error, MySQL with the result 1.
        if database.is_statement_error(failed) if failed else sleeping.result() == (1,):
            where = "" if self._is_direct else f" past the proxy, at {identity.address}"
            return ok(f"a test query was stopped{where}, {took:.0f} ms after it began")
        return error(
            f"a test query was told to stop, but ended with this instead: {failed or sleeping.result()!r}",
            "check whether the user may KILL QUERY on its own connections",
        )

    def _statement_limit(self) -> Finding:
        """Whether a limit is known to hold even where queries cannot be stopped. After `_stopping`."""
        if self._is_direct:
            return ok("the setting statement_limit holds on each connection that the pool makes")
        name, value = self._row(SHOW_LIMIT) or ("max_statement_time", 0)
        [user] = self._row("SELECT CURRENT_USER() AS user")
        if float(value):
            return ok(f"{name} is {value} for {user} on the server, whatever is in between")
        seconds = math.ceil(self._load.longest_request) + 30
        if name == "max_statement_time":
            remedy = f"run ALTER USER {user} WITH MAX_STATEMENT_TIME {seconds}: it holds"
        else:
            remedy = f"run SET PERSIST max_execution_time = {1000 * seconds}: it holds for SELECT"
        return warning(
            f"a proxy with connection ids of its own is in between, and the server sets no {name} for {user} itself",
            f"{remedy} through any proxy, and when a frontend dies",
        )

    def _clock(self) -> Finding:
        before = int(time.time())
        [theirs] = self._row("SELECT UNIX_TIMESTAMP() AS now")
        after = int(time.time())
        ahead = max(theirs - after, 0) or min(theirs - before, 0)
        if abs(ahead) > SKEW:
            return warning(
                f"the database's clock is {abs(ahead)} s {'ahead of' if ahead > 0 else 'behind'} this machine's",
                "synchronise the clocks of both hosts by NTP: timedatectl set-ntp true",
            )
        return ok("the database's clock agrees with this machine's")

    def _time_zone(self) -> Finding:
        zone, offset = self._row(
            "SELECT @@session.time_zone AS zone, TIMESTAMPDIFF(SECOND, UTC_TIMESTAMP(), NOW()) AS offset_"
        )
        ours = time.localtime().tm_gmtoff
        if offset != ours:
            return warning(
                f"the database's time zone ({zone}) is {_hours(offset)} from UTC, this machine's is {_hours(ours)}: "
                "NOW() and Python's datetime.now() give different hours, and at night different days",
                "set both hosts to the same time zone, or set default_time_zone on the server; or make sure that the "
                "application takes the time from only one of them",
            )
        return ok(f"{_hours(ours)} from UTC, here and in the database")


def _hours(seconds: int) -> str:
    return f"{'-' if seconds < 0 else '+'}{abs(seconds) // 3600:02}:{abs(seconds) // 60 % 60:02}"
