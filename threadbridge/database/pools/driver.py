"""The guard of connections that are in no pool with a guard: it sees them through their driver's class."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from dataclasses import replace
from types import ModuleType
from typing import Any, Unpack

from threadbridge.common import forks
from threadbridge.crossing.current import TrackedRequest, current_or_none
from threadbridge.database.borrow import Borrow, HeldConnection
from threadbridge.database.driver import ConnectionSettings
from threadbridge.database.driver_connection import is_guarded
from threadbridge.database.drivers import database_of
from threadbridge.database.drivers.connecting import is_noting
from threadbridge.database.guard import Guard, GuardOptions, nobody_asked
from threadbridge.database.pools.driver_connections import DriverConnections
from threadbridge.sql.statements import text_of

# The modules of the classes ``Connection``, by the driver.
MODULES = {"MySQLdb": "MySQLdb.connections", "pymysql": "pymysql.connections"}
# The arguments that say which server is meant, and the positions of the first two.
_SERVER = ("host", "user", "port", "unix_socket", "read_default_file", "read_default_group")


class DriverGuard(Guard):
    """Replaces methods of the class of a driver's connections: MySQLdb's or PyMySQL's.

    A request has a connection from its first statement on it, or from the time it is made, until it is closed or the
    request ends. Then, what a cancelled request has left open is rolled back, as the next request may get the
    connection. The limits: there is neither a size nor a line to wait in; only connections made after the guard are
    seen, and only those to the server, as the user, of the first; the application's own timeouts for connecting apply;
    a connection that the application has put back into a pool of its own counts as in use until the request ends.

    Raises ``ValueError`` for another driver, or if there is another such guard.

    :param rerun: has no effect: no statement is run again.
    :param resets_sessions: has no effect: the application decides what becomes of its connections.
    """

    def __init__(
        self,
        module: ModuleType,
        on_ask: Callable[[Guard, TrackedRequest], None] = nobody_asked,
        **options: Unpack[GuardOptions],
    ) -> None:
        driver = module.__name__
        if driver not in MODULES:
            raise ValueError(f"connections of {driver} cannot be guarded without a pool; use {' or '.join(MODULES)}")
        self._class: Any = importlib.import_module(MODULES[driver]).Connection
        if hasattr(self._class.query, "threadbridge_guard"):
            raise ValueError(f"the connections of {driver} have a guard already")
        super().__init__(
            f"connections of {driver}",
            ConnectionSettings(module.connect, (), {}),
            [driver],
            on_ask,
            **options,
        )
        self._driver = driver
        # Which server and user the guard's connections have; None until the first is made.
        self._server: tuple[object, ...] | None = None
        self._own = {name: vars(self._class).get(name) for name in _REPLACED}
        methods = {name: getattr(self._class, name) for name in _REPLACED}
        self._connections = DriverConnections(self, methods["rollback"])
        for name, method in methods.items():
            setattr(self._class, name, _replacement(self, method, getattr(self, _REPLACED[name])))
        forks.copies(self)

    def close(self) -> None:
        super().close()
        for name, method in self._own.items():
            if method is not None:
                setattr(self._class, name, method)
            else:
                delattr(self._class, name)
        self._own = {}

    @property
    def knows_server(self) -> bool:
        return self._server is not None

    @property
    def size(self) -> int:
        return 0

    @property
    def in_use(self) -> int:
        borrows = [borrow for each in self._by_request.copy().values() for borrow in tuple(each)]
        return len({borrow.connection for borrow in borrows if not borrow.connection.is_abandoned})

    def count_in(self, connection: HeldConnection) -> None:
        """See `Guard`. There is no number of connections."""

    # The replaced methods. Each gets the driver's own.

    def _init(self, method: Callable[..., Any], connection: Any, *args: Any, **kwargs: Any) -> None:
        connection.threadbridge_arguments = args, kwargs
        # Those made while `is_noting` are another guard's.
        request = None if is_noting() or kwargs.get("defer_connect") else self.ask()
        if request is None or not self._is_ours(connection):
            method(connection, *args, **kwargs)
        else:
            self._connections.take(connection, request, lambda: method(connection, *args, **kwargs))
            self.keep_control()

    def _query(self, method: Callable[..., Any], connection: Any, sql: Any, *args: Any, **kwargs: Any) -> Any:
        request = current_or_none()
        if request is None:
            return method(connection, sql, *args, **kwargs)
        held = self._connections.held(connection)
        if held is not None:
            call = functools.partial(method, connection, sql, *args, **kwargs)
            return held.execute(text_of(sql, None), held, call)
        if is_guarded(connection) or not self._is_ours(connection):
            return method(connection, sql, *args, **kwargs)
        self.ask()
        self._connections.take(connection, request, lambda: None)
        # The connection's own method now, by which its session sees the statement.
        return connection.query(sql, *args, **kwargs)

    def _commit(self, method: Callable[..., Any], connection: Any) -> None:
        held = self._connections.held(connection)
        if held is None:
            method(connection)
        else:
            held.commit_by(lambda: method(connection))

    def _rollback(self, method: Callable[..., Any], connection: Any) -> None:
        held = self._connections.held(connection)
        if held is None:
            method(connection)
        else:
            held.roll_back_by(lambda: method(connection))

    def _close(self, method: Callable[..., Any], connection: Any) -> None:
        is_known = getattr(connection, "threadbridge_held", None) is not None
        if is_known and self.defer(lambda: self._close(method, connection), is_hand_back=True):
            return
        self._connections.release(connection)
        method(connection)

    # Who holds which connection.

    def _is_ours(self, connection: Any) -> bool:
        """Whether the connection was made while the guard was there, and leads to its server."""
        arguments: Any = getattr(connection, "threadbridge_arguments", None)
        if arguments is None:
            return False
        args, kwargs = arguments
        server = (*args[:2], *(kwargs.get(name) for name in _SERVER))
        with self.lock:
            if self._server is None:
                self._server = server
                self.settings = replace(self.settings, args=args, kwargs=kwargs)
                self._database = database_of([self._driver], self.settings)
                # Processes that connect in another way have other lists.
                before = self.connections
                before.end()
                self._start_afresh()
                self.connections.begin(before.directory)
        return server == self._server

    def lend(self, connection: HeldConnection, request: TrackedRequest) -> Borrow:
        borrow = super().lend(connection, request)
        request.at_end[self] = lambda: self._connections.finish(request, list(self._by_request.get(request, ())))
        return borrow


# The methods that are replaced, and by which of the guard's.
_REPLACED = {"__init__": "_init", "query": "_query", "commit": "_commit", "rollback": "_rollback", "close": "_close"}


def _replacement(guard: DriverGuard, method: Callable[..., Any], wrapper: Callable[..., Any]) -> Callable[..., Any]:
    def call(connection: Any, *args: Any, **kwargs: Any) -> Any:
        return wrapper(method, connection, *args, **kwargs)

    call.threadbridge_guard = guard  # type: ignore[attr-defined]
    return call
