"""The guard of mysql-connector-python's ``MySQLConnectionPool``; `check` lists what is private."""

from __future__ import annotations

import contextlib
import functools
import queue
from collections.abc import Callable
from typing import Any, Unpack

from mysql.connector import connect
from mysql.connector.errors import PoolError
from mysql.connector.pooling import PooledMySQLConnection

from threadbridge.common import forks
from threadbridge.crossing.current import TrackedRequest, current_or_none
from threadbridge.database.borrow import HeldConnection
from threadbridge.database.driver import ConnectionSettings
from threadbridge.database.guard import Guard, GuardOptions, nobody_asked
from threadbridge.database.pools.kind import check_free, check_names
from threadbridge.database.pools.mysql_connector_connection import GuardedPooledConnection
from threadbridge.database.replica import replica_of
from threadbridge.database.tracked_connection import TrackedConnection
from threadbridge.database.waiting_line import WaitingLine


class MySQLConnectorGuard(Guard):
    """Replaces the method by which a pool hands out connections, and these connections' ``close``.

    The pool raises ``PoolError`` at once if all its connections are in use; a request waits until its deadline, unless
    it holds one already. Connections are made, checked and reset outside the pool's lock, which all pools share.
    Raises ``ValueError`` for a pool that another guard has, or of an unknown version.

    :param pool: a ``MySQLConnectionPool``.
    :param rerun: has no effect: mysql-connector runs no statement again.
    :param resets_sessions: has no effect: the pool's parameter ``pool_reset_session`` is there for that.
    """

    def __init__(
        self,
        pool: Any,
        on_ask: Callable[[Guard, TrackedRequest], None] = nobody_asked,
        **options: Unpack[GuardOptions],
    ) -> None:
        check_free(pool.get_connection)
        check(pool)
        super().__init__(
            f"MySQLConnectionPool {pool.pool_name}",
            ConnectionSettings(connect, (), dict(pool._cnx_config)),
            ["mysql"],
            on_ask,
            **options,
        )
        self._pool = pool
        self._line = WaitingLine(self, self._has_free)
        self._in_use = 0
        self._of_parent: list[Any] = []
        # The pool's reset ends the limit of the session, and lets it change something on a replica.
        self._prepares_again = bool(self.settings.statement_limit or self.settings.is_replica) and pool.reset_session
        self._pool.get_connection = self._hand_out
        forks.copies(self)

    def close(self) -> None:
        super().close()
        with contextlib.suppress(AttributeError):
            del self._pool.get_connection

    def become_copy(self) -> None:
        super().become_copy()
        self._line.clear()
        self._in_use = 0
        # They are kept, as the driver shuts forgotten ones down, and so the parent's. New ones are made as needed.
        idle = self._pool._cnx_queue
        while idle.qsize():
            self._of_parent.append(idle.get_nowait())

    @property
    def size(self) -> int:
        return int(self._pool.pool_size)

    @property
    def in_use(self) -> int:
        return self._in_use

    def is_outage(self, error: BaseException) -> bool:
        """Whether the error means that the database cannot be reached or that no connection is left."""
        return isinstance(error, PoolError) or super().is_outage(error)

    def count_in(self, connection: HeldConnection) -> None:
        if isinstance(connection, TrackedConnection) and not connection.is_cut:
            connection.is_cut = True
            self._leave()

    def _leave(self) -> None:
        self._in_use -= 1
        self.lock.notify_all()

    # Hand-out. Worker side, or a thread that the application has started.

    def hand_out_for(self, replica: Guard) -> bool:
        if not isinstance(replica, MySQLConnectorGuard):
            return False
        self._pool.get_connection = self._hand_out_of_either
        return True

    def _hand_out_of_either(self) -> PooledMySQLConnection:
        replica = replica_of(current_or_none())
        if replica is None:
            return self._hand_out()
        assert isinstance(replica.guard, MySQLConnectorGuard)
        return replica.hand_out(replica.guard._hand_out, self._hand_out)

    def _hand_out(self) -> PooledMySQLConnection:
        request = self.ask()
        pool = self._pool
        with self.lock:
            self._line.wait_turn(request, self._line.deadline_for(request), _exhausted)
            connection: Any = pool._cnx_queue.get_nowait() if pool._cnx_queue.qsize() else None
            held: TrackedConnection | None = getattr(connection, "threadbridge_held", None)
            if held is None or held.guard is not self:
                held = None
            self._in_use += 1
        try:
            if held is not None:
                held.is_idle = False
                self.lend_to_current(held)
                if not self._is_usable(connection):
                    self.end_borrows(held.borrows)
                    held = None
            if held is None:
                held = TrackedConnection(self)
                connection = held.make_for_current(functools.partial(self._connect, connection))
                connection.threadbridge_held = held
            return GuardedPooledConnection(pool, connection)
        except BaseException as error:
            self.note_failure(error)
            if held is not None:
                self.end_borrows(held.borrows)
            if connection is not None:
                self._put(connection)
            with self.lock:
                if held is None or not held.is_cut:
                    self._leave()
            raise

    def _has_free(self) -> bool:
        return self._in_use < self.size

    def _is_usable(self, connection: Any) -> bool:
        return bool(connection.is_connected() and connection.pool_config_version == self._pool._config_version)

    def _connect(self, connection: Any) -> Any:
        config = self._pool._cnx_config
        if connection is None:
            connection = connect(**{**self.defaults, **config})
        elif not self._is_usable(connection):
            connection.config(**config)
            connection.connect()
        connection.pool_config_version = self._pool._config_version
        return connection

    # Hand-back.

    def take_back(self, connection: Any) -> None:
        """Reset a connection, and put it back into the pool. Raises what the driver raises."""
        held: TrackedConnection = connection.threadbridge_held
        held.is_idle = True
        # Before the reset: that must be neither refused nor stopped.
        self.end_borrows(held.borrows)
        try:
            if held.must_close or held.is_cut:
                held.note_rollback()
                connection.disconnect()
            elif self._pool.reset_session:
                connection.reset_session()
                held.note_rollback()
                held.end_transaction()
        finally:
            if self._prepares_again:
                connection.threadbridge_held = None
            if not held.is_cut:
                self._put(connection)
            with self.lock:
                if not held.is_cut:
                    self._leave()

    def _put(self, connection: Any) -> None:
        # Not by ``add_connection``, which may wait until another thread has made a whole pool.
        try:
            self._pool._cnx_queue.put_nowait(connection)
        except queue.Full:
            # One that was handed out before there was a guard has come back.
            connection.disconnect()


def _exhausted() -> PoolError:
    # The pool's own text.
    return PoolError("Failed getting connection; pool exhausted")


def check(pool: Any) -> None:
    """Raise ``ValueError`` if mysql-connector-python lacks something that the guard uses."""
    # The pool itself connects and pings under a lock of the whole module.
    used = {pool: "_cnx_config _cnx_queue _config_version", PooledMySQLConnection: "_cnx"}
    check_names("mysql-connector-python's pool", "versions 9 to 26", used)
