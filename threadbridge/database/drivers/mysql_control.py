"""Control connections to MySQL servers: one is kept for each server process, and each knows to which it leads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from threadbridge.database.driver import ConnectionSettings, StopFailed
from threadbridge.database.drivers.control_connection import (
    ControlConnection,
    ControlConnections,
    ControlsByServer,
    Way,
    execute,
)
from threadbridge.database.drivers.mysql_drivers import MySQLDriver
from threadbridge.database.drivers.mysql_identity import Server, Variables

# The parameters that ``connect`` takes by position; the drivers' own names for them differ.
POSITIONAL = ("host", "user", "password", "database", "port", "unix_socket")


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
        self.controls = ControlsByServer(driver.error)

    def remember(self, server: Server | str, address: str) -> ControlConnections:
        """The control connections to a server process; to whatever is at the address if ``server`` is an address."""

        def ways() -> list[Way]:
            straight = partial(self._connect_to, address)
            # The first can lead anywhere, but the other needs a network and name service that know the address.
            return [straight] if server == address else [self._connect, straight]

        return self.controls.remember(server, ways)

    def keep(self, name: str) -> None:
        """Make or check the control connection to a server, by its name or address. Raises `StopFailed`."""
        for server in self.controls.servers:
            if name == (server.name if isinstance(server, Server) else server):
                self.controls.keep(server, partial(self._check, server))

    def _check(self, server: Server | str, control: ControlConnection) -> None:
        if isinstance(server, Server):
            verify(control, server)
        execute(control.connection, "DO 0")

    @property
    def addresses(self) -> list[str]:
        """The addresses that are remembered as servers."""
        return [server for server in self.controls.servers if isinstance(server, str)]

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
