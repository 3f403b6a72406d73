"""The guard of connections that are in no pool with a guard: it sees them through their driver's class."""

from __future__ import annotations

import functools
import importlib
import logging
import weakref
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
from threadbridge.database.tracked_connection import TrackedConnection
from threadbridge.sql.mask import masked
from threadbridge.sql.statements import MAX_TEXT, text_of

logger = logging.getLogger("threadbridge")

# The modules of the classes ``Connection``, by the driver.
MODULES = {"MySQLdb": "MySQLdb.connections", "pymysql": "pymysql.connections"}
# The arguments that say which server is meant, and the positions of the first two.
_SERVER = ("host", "user", "port", "unix_socket", "read_default_file", "read_default_group")


class _Connection(TrackedConnection):
    """A connection that the application has made."""

    def __init__(self, guard: Guard, connection: Any) -> None:
        super().__init__(guard)
        # The application closes it, perhaps by forgetting it.
        self.connection = weakref.ref(connection)

    @property
    def rowcount(self) -> int:
        connection: Any = self.connection()
        return int(connection.affected_rows())

    @property
    def may_be_open(self) -> bool:
        return self._session.may_be_open

    def recorded(self, sql: str) -> str:
        """See `TrackedConnection`. The driver's class gets statements with their values in them."""
        return masked(sql[:MAX_TEXT])


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
        self._methods = {name: getattr(self._class, name) for name in _REPLACED}
        for name, method in self._methods.items():
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
            self._take(connection, request, lambda: method(connection, *args, **kwargs))
            self.keep_control()

    def _query(self, method: Callable[..., Any], connection: Any, sql: Any, *args: Any, **kwargs: Any) -> Any:
        request = current_or_none()
        if request is None:
            return method(connection, sql, *args, **kwargs)
        held = self._held(connection)
        if held is not None:
            call = functools.partial(method, connection, sql, *args, **kwargs)
            return held.execute(text_of(sql, None), held, call)
        if is_guarded(connection) or not self._is_ours(connection):
            return method(connection, sql, *args, **kwargs)
        self.ask()
        self._take(connection, request, lambda: None)
        # The connection's own method now, by which its session sees the statement.
        return connection.query(sql, *args, **kwargs)

    def _commit(self, method: Callable[..., Any], connection: Any) -> None:
        held = self._held(connection)
        if held is None:
            method(connection)
        else:
            held.commit_by(lambda: method(connection))

    def _rollback(self, method: Callable[..., Any], connection: Any) -> None:
        held = self._held(connection)
        if held is None:
            method(connection)
        else:
            held.roll_back_by(lambda: method(connection))

    def _close(self, method: Callable[..., Any], connection: Any) -> None:
        held: _Connection | None = getattr(connection, "threadbridge_held", None)
        if held is not None:
            if self.defer(lambda: self._close(method, connection), is_hand_back=True):
                return
            held.is_idle = True
            self.end_borrows(held.borrows)
            held.note_rollback()
            connection.threadbridge_held = None
        method(connection)

    # Who holds which connection.

    def _held(self, connection: Any) -> _Connection | None:
        """What the guard keeps of the connection; None if it has not got it, or no request is served."""
        held: _Connection | None = getattr(connection, "threadbridge_held", None)
        if held is None or current_or_none() is None:
            return None
        if held.number != connection.thread_id():
            # The driver has connected again, as PyMySQL's ``ping`` does.
            self.end_borrows(held.borrows)
            held.note_rollback()
            request = current_or_none()
            if request is not None:
                self._take(connection, request, lambda: None)
        return connection.threadbridge_held  # type: ignore[no-any-return]

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

    def _take(self, connection: Any, request: TrackedRequest, connect: Callable[[], None]) -> None:
        """Lend a connection to the request, and connect or examine it. Raises what the driver raises."""
        connection.threadbridge_held = None
        held = _Connection(self, connection)

        def made() -> Any:
            connect()
            return connection

        with self.lock:
            self.lend(held, request)
        try:
            held.make(made)
        except BaseException as error:
            self.note_failure(error)
            self.end_borrows(held.borrows)
            raise
        held.use()
        connection.threadbridge_held = held

    def lend(self, connection: HeldConnection, request: TrackedRequest) -> Borrow:
        borrow = super().lend(connection, request)
        request.at_end[self] = lambda: self._finish(request)
        return borrow

    def _finish(self, request: TrackedRequest) -> None:
        borrows = list(self._by_request.get(request, ()))
        self.end_borrows(borrows)
        for borrow in borrows:
            held = borrow.connection
            if request.cancelled and isinstance(held, _Connection) and not held.borrows:
                self._roll_back(held)

    def _roll_back(self, held: _Connection) -> None:
        connection = held.connection()
        try:
            if connection is not None and held.may_be_open:
                held.roll_back_by(lambda: self._methods["rollback"](connection))
        except Exception as error:  # noqa: BLE001 - whatever the driver raises: the connection is lost, or was closed
            logger.debug("a connection of a cancelled request cannot roll back: %r", error)


# The methods that are replaced, and by which of the guard's.
_REPLACED = {"__init__": "_init", "query": "_query", "commit": "_commit", "rollback": "_rollback", "close": "_close"}


def _replacement(guard: DriverGuard, method: Callable[..., Any], wrapper: Callable[..., Any]) -> Callable[..., Any]:
    def call(connection: Any, *args: Any, **kwargs: Any) -> Any:
        return wrapper(method, connection, *args, **kwargs)

    call.threadbridge_guard = guard  # type: ignore[attr-defined]
    return call
