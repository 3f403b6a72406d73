"""Control connections to MySQL servers: one is kept for each server process, and each knows to which it leads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from threadbridge.database.driver import ConnectionSettings, StopFailed
from threadbridge.database.drivers.control_connection import ControlConnection, ControlConnections, execute
from threadbridge.database.drivers.mysql_drivers import MySQLDriver
from threadbridge.database.drivers.mysql_identity import Server, Variables

# The parameters that ``connect`` takes by position; the drivers' own names for them differ.
POSITIONAL = ("host", "user", "password", "database", "port", "unix_socket")
# To how many servers connections are kept; the oldest is forgotten first.
MAX_SERVERS = 32


class ControlServer(NamedTuple):
    """The server to which a control connection leads."""

    server: Server
    # When it started, by its clock; it may be off by one, as two statements give it.
    started: int
    # The name of the connection's user.
    user: str


class ServerControls:
    """Control connections, made as the pool's are or straight to a server's own address. Any thread."""

    def __init__(
        self, settings: ConnectionSettings, driver: MySQLDriver, timeouts: Mapping[str, Any], variables: Variables
    ) -> None:
        self._settings = settings
        self._driver = driver
        self._timeouts = timeouts
        self._variables = variables
        # Each operation on it is atomic.
        self._servers: dict[Server | str, ControlConnections] = {}
        self._is_closed = False

    def remember(self, server: Server | str, address: str) -> ControlConnections:
        """The control connections to a server process; to whatever is at the address if ``server`` is an address."""
        found = self._servers.get(server)
        if found is None:
            ways: list[Callable[[], ControlConnection]] = [partial(self._connect_to, address)]
            if server != address:
                # It can lead anywhere, but the other way needs a network and name service that know the address.
                ways.insert(0, self._connect)
            found = self._servers.setdefault(server, ControlConnections(ways, self._driver.error))
            if self._is_closed:
                found.close()
            while len(self._servers) > MAX_SERVERS:
                self.forget(next(iter(self._servers)))
        return found

    def keep(self, name: str) -> None:
        """Make or check the control connection to a server, by its name or address. Raises `StopFailed`."""
        for server, control in list(self._servers.items()):
            if name != (server.name if isinstance(server, Server) else server):
                continue
            try:
                control.use(partial(self._check, server))
            except StopFailed:
                # A connection that comes to the server will bring it back.
                self.forget(server)
                raise

    def _check(self, server: Server | str, control: ControlConnection) -> None:
        if isinstance(server, Server):
            verify(control, server)
        execute(control.connection, "DO 0")

    @property
    def addresses(self) -> list[str]:
        """The addresses that are remembered."""
        return [server for server in list(self._servers) if isinstance(server, str)]

    def forget(self, server: Server | str) -> None:
        """Keep no control connection to a server that cannot be reached, until a connection of the pool comes there."""
        if (control := self._servers.pop(server, None)) is not None:
            control.close()

    def close(self) -> None:
        """Close all, and keep none from now on."""
        self._is_closed = True
        for server in list(self._servers):
            self._servers[server].close()

    def _connect(self) -> ControlConnection:
        return self._know(self._settings.connect_within(self._timeouts), self._variables)

    def _connect_to(self, address: str) -> ControlConnection:
        """Connect past all proxies. Raises `StopFailed`."""
        if not self._settings.takes_timeouts:
            raise StopFailed(f"the application's connect function cannot be told to connect to {address}")
        host, _, port = address.rpartition(":")
        settings = self._settings
        kwargs = {
            **dict(zip(POSITIONAL, settings.args, strict=False)),
            **settings.kwargs,
            "host": host,
            "port": int(port),
        }
        kwargs.pop("unix_socket", None)
        straight = replace(settings, args=(), kwargs=kwargs)
        try:
            return self._know(straight.connect_within(self._timeouts), Variables(self._driver))
        except self._driver.error as error:
            raise StopFailed(f"cannot connect to {address}, the server's own address: {error}") from error

    def _know(self, connection: Any, variables: Variables) -> ControlConnection:
        control = ControlConnection(connection, self._driver.descriptor)
        try:
            number, process, now, _ = variables.process(connection)
            if not variables.is_direct(connection, number):
                # It would take a KILL to mean something else.
                raise StopFailed(
                    "a proxy with connection ids of its own is between the control connection and the server"
                )
            # Longer than it is ever idle.
            execute(connection, "SET SESSION wait_timeout = 2147483")
            name, _, _ = variables.name(connection)
            _, uptime = execute(connection, "SHOW STATUS LIKE 'Uptime'")
            [user] = execute(connection, "SELECT SUBSTRING_INDEX(USER(), '@', 1)")
        except BaseException:
            control.close()
            raise
        control.server = ControlServer(Server(name, process), now - int(uptime), str(user))
        return control


def verify(control: ControlConnection, server: Server) -> None:
    """Raise `StopFailed` if the control connection leads to another server process."""
    found: Server = control.server.server
    if found != server:
        which = f"another process of {found.name}" if found.name == server.name else found.name
        raise StopFailed(f"the control connection came to {which}, not to {server.name}")
