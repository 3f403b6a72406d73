"""The guard of an SQLAlchemy engine. It uses public events and methods; `_PRIVATE` names the rest."""

from __future__ import annotations

import contextlib
import functools
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Unpack

from sqlalchemy import Engine, event, exc
from sqlalchemy.pool import AssertionPool, Pool, QueuePool, SingletonThreadPool, StaticPool

from threadbridge.common import forks
from threadbridge.crossing.current import TrackedRequest, current_or_none
from threadbridge.database.borrow import HeldConnection, borrow_of
from threadbridge.database.driver import ConnectionSettings
from threadbridge.database.guard import Guard, GuardOptions, nobody_asked
from threadbridge.database.pools.sqlalchemy_statements import EngineConnection, EngineStatements
from threadbridge.database.waiting_line import WaitingLine

# How many connections a QueuePool may make beyond its size; no public name gives or sets it.
_PRIVATE = "_max_overflow"


class _ThisThread(threading.local):
    # Whether the thread has passed the line and has not got a connection yet, and the record that it has got since.
    is_entering = False
    record: Any = None
    # What to connect with, outside the pool.
    timeouts: Mapping[str, Any] | None = None


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
        other = getattr(getattr(engine.pool.connect, "func", None), "__self__", None)
        if isinstance(other, SQLAlchemyGuard):
            if not other.closed:
                raise ValueError(
                    "this engine belongs to another Bridge already; give both applications to one, or two engines"
                )
            other.let_go()
        if isinstance(engine.pool, StaticPool):
            raise ValueError(
                f"requests would share the one connection of {describe(engine)} (StaticPool); use another poolclass"
            )
        size_of(engine.pool)
        dialect: Any = engine.dialect
        url = engine.url.render_as_string(hide_password=True)
        settings = ConnectionSettings(self._connect_apart, (url,), {}, name=describe(engine))
        super().__init__(
            describe(engine),
            threading.Condition(),
            settings,
            [dialect.loaded_dbapi.__name__],
            on_ask,
            **options,
        )
        self._engine = engine
        self._line = WaitingLine(self, self._has_free)
        self._this_thread = _ThisThread()
        # By the id of the driver's connection, which lives at least as long as its entry.
        self._made: dict[int, EngineConnection] = {}
        self._statements = EngineStatements(engine, self, self._made, self._lend)
        # The pool's records of the connections that are handed out, and how many threads are about to get one.
        self._out: set[Any] = set()
        self._entering = 0
        # Those that were given up while connecting. Until this ends, the pool may make one more for each.
        self._given_up: set[Any] = set()
        if not isinstance(engine.pool, SingletonThreadPool):
            # Its connections are not known. Those of a SingletonThreadPool may be databases in memory.
            engine.dispose()
        pool = engine.pool
        self._events: list[tuple[object, str, Callable[..., Any]]] = [
            (pool, "connect", self._on_connect),
            (pool, "checkout", self._on_checkout),
            (pool, "reset", self._on_reset),
            (pool, "checkin", self._on_checkin),
            (pool, "detach", self._on_detach),
            (pool, "close", self._on_close),
            (pool, "close_detached", self._on_close),
            (engine, "do_connect", self._do_connect),
            *self._statements.events,
        ]
        for target, name, listener in self._events:
            event.listen(target, name, listener)
        self._wrap(pool)
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
        self._made.clear()
        self._out, self._entering, self._given_up = set(), 0, set()
        # The parent has the connections.
        self._engine.dispose(close=False)

    @property
    def size(self) -> int:
        return size_of(self._engine.pool) - len(self._given_up)

    @property
    def in_use(self) -> int:
        return len(self._out)

    def is_outage(self, error: BaseException) -> bool:
        """Whether the error means that the database cannot be reached or that no connection is left."""
        return isinstance(error, exc.TimeoutError) or super().is_outage(_original(error))

    def is_lost(self, error: BaseException) -> bool:
        return super().is_lost(_original(error))

    def count_out(self, connection: HeldConnection) -> None:
        """See `Guard`. One that was cut no longer belongs to the pool, even if its thread came back."""

    def count_in(self, connection: HeldConnection) -> None:
        fairy = connection.fairy() if isinstance(connection, EngineConnection) and connection.fairy else None
        if fairy is not None:
            # The pool may make another one.
            fairy.detach()
        elif isinstance(connection, EngineConnection) and connection.record in self._out:
            self._give_up(connection.record)

    def _give_up(self, record: Any) -> None:
        """Let the pool make a connection instead of one that is still being made. Under the lock."""
        self._out.discard(record)
        if self.size and isinstance(self._engine.pool, QueuePool):
            self._given_up.add(record)
            self._change_overflow(1)
        self.lock.notify_all()

    def _change_overflow(self, change: int) -> None:
        pool = self._engine.pool
        setattr(pool, _PRIVATE, getattr(pool, _PRIVATE) + change)

    # Hand-out. Worker side, or a thread that the application has started.

    def _wrap(self, pool: Any) -> Any:
        """Have the pool, and those that replace it when the engine is disposed of, ask this guard."""
        pool.connect = functools.partial(self._connect, pool.connect)
        recreate = pool.recreate
        # Not by the event `engine_disposed`: an engine with such events is slower at each statement.
        pool.recreate = lambda: self._wrap(recreate())
        return pool

    def _connect(self, connect: Callable[[], Any]) -> Any:
        if self._this_thread.timeouts is not None:
            return connect()
        self._enter(self.ask())
        try:
            return connect()
        except BaseException:
            self._leave(self._this_thread.record)
            raise
        finally:
            self._stop_entering(None)
            self._this_thread.record = None

    def _enter(self, request: TrackedRequest | None) -> None:
        pool = self._engine.pool
        timeout = pool.timeout() if isinstance(pool, QueuePool) else None
        latest = None if timeout is None else time.monotonic() + timeout

        def wait() -> None:
            if not self._line.wait(None if latest is None else latest - time.monotonic()):
                message = f"all {self.size} connections of {self.name} are in use; none came back within {timeout:g} s"
                raise exc.TimeoutError(message)

        with self.lock:
            self._line.wait_turn(request, wait)
            self._entering += 1
            self._this_thread.is_entering = True

    def _has_free(self) -> bool:
        size = self.size
        return not size or len(self._out) + self._entering < size

    def _stop_entering(self, record: Any) -> None:
        """Note that this thread has got a connection, or none."""
        if self._this_thread.is_entering:
            self._this_thread.is_entering = False
            self._this_thread.record = record
            with self.lock:
                self._entering -= 1
                if record is not None:
                    self._out.add(record)
                else:
                    self.lock.notify_all()

    def _leave(self, record: Any) -> None:
        with self.lock:
            if record in self._out:
                self._out.discard(record)
                self.lock.notify_all()
            elif record in self._given_up:
                self._given_up.discard(record)
                self._change_overflow(-1)

    def _lend(self, held: EngineConnection) -> None:
        request = current_or_none()
        if request is not None and borrow_of(held, request) is None:
            with self.lock:
                self.lend(held, request)

    # The events.

    def _do_connect(self, dialect: Any, record: Any, arguments: list[Any], parameters: dict[str, Any]) -> Any:
        timeouts = self._this_thread.timeouts
        if timeouts is not None:
            return dialect.connect(*arguments, **{**parameters, **timeouts})
        defaults = {} if self._database is None else self._database.defaults
        return self._make(record, lambda: dialect.connect(*arguments, **{**defaults, **parameters}))

    def _make(self, record: Any, connect: Callable[[], Any]) -> Any:
        self._stop_entering(record)
        held = EngineConnection(self)
        held.record = record
        self._lend(held)
        try:
            made = held.make(connect)
        except BaseException:
            self.end_borrows(held.borrows)
            raise
        held.use()
        self._made[id(made)] = held
        self.keep_control()
        return made

    def _on_connect(self, connection: Any, record: Any) -> None:
        if id(connection) not in self._made and self._this_thread.timeouts is None and self._is_drivers(connection):
            # Made by a function of the application's. What another pool hands out is not the driver's, and has the
            # guard of that pool.
            self._make(record, lambda: connection)

    def _is_drivers(self, connection: Any) -> bool:
        modules = [kind.__module__.partition(".")[0] for kind in type(connection).__mro__]
        return self._engine.dialect.loaded_dbapi.__name__.partition(".")[0] in modules

    def _on_checkout(self, connection: Any, record: Any, fairy: Any) -> None:
        self._stop_entering(record)
        held = self._made.get(id(connection))
        if held is not None:
            held.is_idle = False
            held.fairy, held.record = weakref.ref(fairy), None
            self._lend(held)

    def _on_reset(self, connection: Any, record: Any, state: object) -> None:
        held = self._made.get(id(connection))
        if held is not None:
            # Before the pool rolls back: that must be neither refused nor stopped.
            held.is_idle = True
            self.end_borrows(held.borrows)

    def _on_checkin(self, connection: Any, record: Any) -> None:
        held = self._made.get(id(connection))
        if held is not None and held.must_close:
            record.invalidate()
        self._leave(record)

    def _on_detach(self, connection: Any, record: Any) -> None:
        self._leave(record)

    def _on_close(self, connection: Any, record: Any = None) -> None:
        held = self._made.pop(id(connection), None)
        if held is not None:
            held.note_rollback()
            self.end_borrows(held.borrows)

    # Outside the pool.

    def _connect_apart(self, url: str, **timeouts: Any) -> Any:
        """Connect as the pool does, with its function and events."""
        with self._apart(timeouts):
            fairy = self._engine.pool.recreate().connect()
            fairy.detach()
            return fairy.dbapi_connection

    @contextlib.contextmanager
    def _apart(self, timeouts: Mapping[str, Any]) -> Iterator[None]:
        self._this_thread.timeouts = timeouts
        try:
            yield
        finally:
            self._this_thread.timeouts = None


def describe(engine: Engine) -> str:
    """The engine, for operators: without its password and parameters."""
    url = engine.url.set(query={})
    return f"SQLAlchemy engine {url.render_as_string(hide_password=True)}"


def size_of(pool: Pool) -> int:
    """How many connections a pool hands out at once; 0 if that is unlimited. Raises ``ValueError`` if not supported."""
    if isinstance(pool, AssertionPool):
        return 1
    if not isinstance(pool, QueuePool):
        return 0
    overflow = getattr(pool, _PRIVATE, None)
    if overflow is None:
        raise ValueError(f"SQLAlchemy's QueuePool has no {_PRIVATE}; threadbridge supports SQLAlchemy 2.0 and 2.1")
    return 0 if overflow < 0 or not pool.size() else int(pool.size() + overflow)


def _original(error: BaseException) -> BaseException:
    """The driver's error that SQLAlchemy raises as its own."""
    return error.orig if isinstance(error, exc.DBAPIError) and error.orig is not None else error
