"""Identifies a MySQL connection: what is between it and its server, and so by what its statements can be stopped.

- Its thread id and the server agree: nothing is in between that counts connections, only perhaps a TCP proxy such as
  HAProxy. The thread is stopped by its id, on a control connection to the same server process.
- They do not: ProxySQL, MaxScale or the like is in between, with session ids of its own. It takes each KILL to mean one
  of these, answers OK to any number, and may give the server's thread to another client between two statements. Only
  the statement itself can be recognised in the server, by a unique comment. MariaDB gives each statement a number that
  no other ever gets, and can stop it by that: on a control connection past the proxy.
- In all other cases, nothing is stopped.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any, NamedTuple

from threadbridge.database.drivers.control_connection import execute, rows
from threadbridge.database.drivers.mysql_drivers import MySQLDriver
from threadbridge.database.drivers.mysql_errors import ER_UNKNOWN_SYSTEM_VARIABLE, number_of

# The end of a UUID is a random number of the server process, and the machine's network address.
# ProxySQL itself answers "SELECT CONNECTION_ID()", but no longer query. It dedicates a thread to the client of a query
# that contains "@" or "GET_LOCK(", so these may be sent only where there is no such proxy.
_PROCESS = "SELECT CONNECTION_ID(), SUBSTR(UUID(), 20), UNIX_TIMESTAMP(), VERSION()"
_NAME = "CONCAT_WS('|', @@hostname, @@port, @@server_id, @@pid_file{})"
# These differ between servers that are copies of each other. MariaDB has them since 10.6.16 and 10.11.6.
_NAME_PARTS = {True: ", @@server_uid, @@wsrep_node_address", False: ", @@server_uuid"}
_VARIABLES = ("report_host", "report_port", "hostname", "port")
_CLUSTER_VARIABLES = {True: (*_VARIABLES, "wsrep_node_address"), False: _VARIABLES}
_SHOW = f"SHOW VARIABLES WHERE Variable_name IN {_CLUSTER_VARIABLES[True]}"
# The handshake has room for half of a thread id.
HANDSHAKE_BITS = 0xFFFFFFFF


class Identity(NamedTuple):
    """A connection, as its server knows it. See `driver.Identity`."""

    # The thread id; behind a proxy with ids of its own, the proxy's.
    number: int
    # The name of the server that assigned it. Behind a proxy with ids of its own, the `address` of the server behind it
    # to which the connection came first. "" if statements cannot be stopped.
    server: str
    # When the connection was identified, in seconds by the server's clock.
    made: int
    # The name of a user lock (``GET_LOCK``) that the connection holds as long as it lives, unless the application
    # releases all its locks. Only the connection's own server process knows who holds it. "" if the server refuses such
    # locks, as some clusters do.
    mark: str
    # A random number of the server process.
    process: str = ""
    # Where the server itself can be reached, whatever is in between: HOST:PORT.
    address: str = ""
    # What the comment at the beginning of each statement contains, if the connection is known only by its statements.
    tag: str = ""
    obstacle: str = ""

    @property
    def is_findable(self) -> bool:
        return bool(self.server)


class Server(NamedTuple):
    """A server process. The name stays the same when it restarts."""

    name: str
    process: str


class Variables:
    """Reads the names of servers. Several threads may call it at once."""

    def __init__(self, driver: MySQLDriver) -> None:
        self._driver = driver
        self._has_all = True
        # Whether the ids of a connection have differed: those of another may agree by chance.
        self._is_proxied = False

    def process(self, connection: Any) -> tuple[int, str, int, str]:
        """The thread id by the server, the server process, the server's time, and its version."""
        number, process, now, version = execute(connection, _PROCESS)
        return int(number), str(process), int(now), str(version)

    def is_direct(self, connection: Any, number: int) -> bool:
        """Whether the server knows the connection by the same thread id as the driver, and others, too."""
        if number & HANDSHAKE_BITS != self._driver.number(connection) & HANDSHAKE_BITS:
            self._is_proxied = True
        return not self._is_proxied

    def marked(self, connection: Any, number: int, process: str, now: int) -> Identity:
        """The identity of a connection whose thread id the server knows."""
        mark = f"threadbridge-{secrets.token_hex(16)}"
        try:
            name, address, (is_held,) = self.name(connection, "GET_LOCK(%s, 0) AS mark, ", mark)
        except self._driver.error:
            name, address, _ = self.name(connection)
            is_held = False
        return Identity(number, name, now, mark if is_held else "", process, address)

    def name(self, connection: Any, prefix: str = "", *parameters: str) -> tuple[str, str, tuple[Any, ...]]:
        """The server's name and its own address, and the values of what is selected first by ``prefix``."""
        is_mariadb = "mariadb" in self._driver.server_version(connection).lower()
        if self._has_all:
            try:
                return self._row(
                    connection, prefix, _NAME_PARTS[is_mariadb], _CLUSTER_VARIABLES[is_mariadb], parameters
                )
            except self._driver.error as error:
                if number_of(error) != ER_UNKNOWN_SYSTEM_VARIABLE:
                    raise
                self._has_all = False
        return self._row(connection, prefix, "", _VARIABLES, parameters)

    def _row(
        self, connection: Any, prefix: str, parts: str, variables: tuple[str, ...], parameters: tuple[str, ...]
    ) -> tuple[str, str, tuple[Any, ...]]:
        columns = ", ".join(f"@@{name}" for name in variables)
        row = execute(connection, f"SELECT {prefix}{_NAME.format(parts)} AS name, {columns}", *parameters)
        *first, name = row[: -len(variables)]
        return str(name), address_of(dict(zip(variables, row[-len(variables) :], strict=True))), tuple(first)

    def address_behind_proxy(self, connection: Any) -> str:
        """The own address of the server that answers this statement."""
        return address_of({str(name): value for name, value in rows(connection, _SHOW)})


def tagged_identity(number: int, address: str, now: int) -> Identity:
    """The identity of a connection that is known only by its statements."""
    return Identity(number, address, now, "", address=address, tag=f"threadbridge-{secrets.token_hex(16)}")


def address_of(variables: Mapping[str, Any]) -> str:
    """Where other machines reach the server. An administrator may choose it by ``report_host``."""
    if variables.get("report_host"):
        return f"{variables['report_host']}:{variables['report_port']}"
    host = str(variables.get("wsrep_node_address") or "")
    if host.startswith("["):
        host = host[1:].partition("]")[0]
    elif host.count(":") == 1:
        # The port is the cluster's.
        host = host.partition(":")[0]
    if not host or host.upper() == "AUTO":
        host = str(variables["hostname"])
    return f"{host}:{variables['port']}"
