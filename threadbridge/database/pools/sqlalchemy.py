"""The guard of an SQLAlchemy engine. It uses public events and methods; `sqlalchemy_check` lists the rest."""

from __future__ import annotations

import contextlib
import functools
import math
import threading
import time
from collections.abc import Callable
from typing import Any, Unpack

from sqlalchemy import Engine, event, exc
from sqlalchemy.pool import QueuePool, SingletonThreadPool

from threadbridge.common import forks
from threadbridge.crossing.current import TrackedRequest, current_or_none
from threadbridge.database.borrow import HeldConnection
from threadbridge.database.driver import ConnectionSettings
from threadbridge.database.guard import Guard, GuardOptions, nobody_asked
from threadbridge.database.pools.kind import check_free
from threadbridge.database.pools.sqlalchemy_check import check, describe, size_of
from threadbridge.database.pools.sqlalchemy_connections import EngineConnection, EngineConnections
from threadbridge.database.pools.sqlalchemy_statements import EngineStatements
from threadbridge.database.replica import replica_of
from threadbridge.database.waiting_line import CountingLine


class _ThisThread(threading.local):
    # Whether the thread has passed the line and has not got a connection yet, and the record that it has got since.
    is_entering = False
    record: Any = None


class SQLAlchemyGuard(Guard):
    """Sees an engine's connections and statements by its events; waits for a connection in place of the pool.

    Statements on a ``raw_connection()`` are stopped, but neither recorded nor refused. What SQLAlchemy itself does for
    lost connections (``pool_pre_ping``, ``pool_recycle``) is left to it. Raises ``ValueError`` for an engine that
    another guard has, or whose connections requests share.

    :param rerun: has no effect: SQLAlchemy runs no statement again.
    :param resets_sessions: has no effect: the pool's event ``reset`` is there for that.
    """

    def __init__(
        self,
        engine: Engine,
        on_ask: Callable[[Guard, TrackedRequest], None] = nobody_asked,
        **options: Unpack[GuardOptions],
    ) -> None:
        # A partial of `_connect`, if there is a guard.
        connect = getattr(engine.pool.connect, "func", None)
        check_free(connect)
        if isinstance(other := getattr(connect, "__self__", None), SQLAlchemyGuard):
            other.let_go()
        check(engine)
        self._engine = engine
        if not isinstance(engine.pool, SingletonThreadPool):
            # Its connections are not known. Those of a SingletonThreadPool may be databases in memory.
            engine.dispose()
        self._connections = EngineConnections(engine, self, self._end_entering)
        self._statements = EngineStatements(engine, self, self._connections)
        dialect: Any = engine.dialect
        name = describe(engine)
        url = engine.url.render_as_string(hide_password=True)
        settings = ConnectionSettings(self._connections.connect_apart, (url,), {}, name=name)
        super().__init__(name, settings, [dialect.loaded_dbapi.__name__], on_ask, **options)
        self._line = CountingLine(self, lambda: self.size or math.inf)
        self._this_thread = _ThisThread()
        self._events: list[tuple[object, str, Callable[..., Any]]] = [
            *self._connections.events,
            *self._statements.events,
            (engine.pool, "checkin", self._on_checkin),
            (engine.pool, "detach", self._on_detach),
        ]
        for target, name, listener in self._events:
            event.listen(target, name, listener)
        self._hand_out = self._connect
        self._wrap(engine.pool)
        self._statements.wrap_dialect()
        forks.copies(self)

    def leave(self) -> None:
        super().leave()
        self.let_go()

    def let_go(self) -> None:
        """See and change nothing of the engine from now on. Any thread, once the guard is closed."""
        for target, name, listener in self._events:
            with contextlib.suppress(exc.InvalidRequestError):
                event.remove(target, name, listener)
        for name in ("connect", "recreate"):
            with contextlib.suppress(AttributeError):
                delattr(self._engine.pool, name)
        self._statements.unwrap_dialect()

    def become_copy(self) -> None:
        super().become_copy()
        self._line.clear()
        self._connections.clear()
        # The parent has the connections.
        self._engine.dispose(close=False)

    @property
    def size(self) -> int:
        return size_of(self._engine.pool)

    @property
    def in_use(self) -> int:
        return len(self._line.out)

    def is_outage(self, error: BaseException) -> bool:
        """Whether the error means that the database cannot be reached or that no connection is left."""
        return isinstance(error, exc.TimeoutError) or super().is_outage(_original(error))

    def is_lost(self, error: BaseException) -> bool:
        return super().is_lost(_original(error))

    def count_in(self, connection: HeldConnection) -> None:
        assert isinstance(connection, EngineConnection)
        fairy = None if connection.fairy is None else connection.fairy()
        if fairy is not None:
            # The pool may make another one.
            fairy.detach()
        elif id(connection.record) in self._line.out:
            # It is still being made, and so counts in its pool until that ends.
            self._line.leave(connection.record)
            if self.size:
                self._replace_pool()

    def _replace_pool(self) -> None:
        """Let the engine continue with a new pool. Under the lock."""
        old = self._engine.pool
        self._engine.dispose(close=False)
        # The idle connections. Elsewhere, as the database may not answer.
        self.do_later(old.dispose)

    # Hand-out. Worker side, or a thread that the application has started.

    def hand_out_for(self, replica: Guard) -> bool:
        if not isinstance(replica, SQLAlchemyGuard):
            return False
        self._connections.find_those_of(replica._connections)
        self._hand_out = self._connect_to_either
        pool: Any = self._engine.pool
        pool.connect = functools.partial(self._hand_out, pool)
        return True

    def _connect_to_either(self, pool: Any) -> Any:
        replica = None if self._connections.is_apart else replica_of(current_or_none())
        if replica is None:
            return self._connect(pool)
        assert isinstance(replica.guard, SQLAlchemyGuard)
        other = replica.guard._engine.pool
        return replica.hand_out(other.connect, lambda: self._connect(pool))

    def _wrap(self, pool: Any) -> Any:
        """Make the pool, and those that replace it when the engine is disposed of, ask this guard."""
        pool.connect = functools.partial(self._hand_out, pool)
        recreate = pool.recreate
        # Not by the event `engine_disposed`: an engine with such events is slower at each statement.
        pool.recreate = lambda: self._wrap(recreate())
        return pool

    def _connect(self, pool: Any) -> Any:
        if self._connections.is_apart:
            return type(pool).connect(pool)
        self._enter(self.ask())
        try:
            # The engine may have got another pool meanwhile.
            pool = self._engine.pool
            return type(pool).connect(pool)
        except BaseException:
            self._line.leave(self._this_thread.record)
            raise
        finally:
            self._end_entering(None)
            self._this_thread.record = None

    def _enter(self, request: TrackedRequest | None) -> None:
        pool = self._engine.pool
        timeout = pool.timeout() if isinstance(pool, QueuePool) else None

        def too_late() -> Exception:
            return exc.TimeoutError(
                f"all {self.size} connections of {self.name} are in use; none came back within {timeout:g} s"
            )

        self._line.enter(request, None if timeout is None else time.monotonic() + timeout, too_late)
        self._this_thread.is_entering = True

    def _end_entering(self, record: Any) -> None:
        """Note that this thread has got a connection, or none."""
        if self._this_thread.is_entering:
            self._this_thread.is_entering = False
            self._this_thread.record = record
            self._line.end_entering(record)

    # Hand-back: the events.

    def _on_checkin(self, connection: Any, record: Any) -> None:
        held = self._connections.get(connection)
        if held is not None and held.must_close:
            record.invalidate()
        self._line.leave(record)

    def _on_detach(self, connection: Any, record: Any) -> None:
        self._line.leave(record)


def _original(error: BaseException) -> BaseException:
    """The driver's error that SQLAlchemy raises as its own."""
    return error.orig if isinstance(error, exc.DBAPIError) and error.orig is not None else error
