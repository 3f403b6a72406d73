"""The connections and cursors of a guarded ``psycopg_pool.ConnectionPool``: the application's classes, extended."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from psycopg import Connection, Cursor
from psycopg.pq import TransactionStatus

from threadbridge.database.tracked_connection import TrackedConnection
from threadbridge.sql.statements import text_of


class _Guard(Protocol):
    def make(self, connect: Callable[..., Any], conninfo: str, kwargs: dict[str, Any]) -> Any: ...

    def check(self, held: Any, call: Callable[[], Any]) -> Any: ...


class _Base(Connection[Any]):
    """What `guarded` adds to a class of connections. Long names, as the class may be the application's."""

    threadbridge_guard: _Guard
    # None until the connection is made.
    threadbridge_held: TrackedConnection | None = None
    # The classes of cursors that are extended.
    threadbridge_cursor: Any
    threadbridge_server_cursor: Any

    @classmethod
    def connect(cls, conninfo: str = "", **kwargs: Any) -> Any:
        return cls.threadbridge_guard.make(super().connect, conninfo, kwargs)

    def commit(self) -> None:
        held = self.threadbridge_held
        if held is None or held.is_idle:
            super().commit()
        else:
            held.commit_by(super().commit)

    def rollback(self) -> None:
        held = self.threadbridge_held
        if held is None or held.is_idle:
            super().rollback()
        else:
            held.roll_back_by(super().rollback)

    @contextlib.contextmanager
    def transaction(self, savepoint_name: str | None = None, force_rollback: bool = False) -> Iterator[Any]:
        """See ``Connection.transaction``; that of a cancelled request rolls back."""
        held = self.threadbridge_held
        begins = self.info.transaction_status == TransactionStatus.IDLE
        block = contextlib.ExitStack()
        try:
            try:
                transaction = block.enter_context(super().transaction(savepoint_name, force_rollback))
            except BaseException as error:
                # No cursor has sent its BEGIN.
                if held is not None:
                    held.guard.note_failure(error)
                raise
            try:
                yield transaction
                if held is not None and not held.is_idle and begins and not force_rollback:
                    # If this is refused, the block ends with the error, and so rolls back.
                    held.commit_by(block.close)
            except BaseException as error:
                ends = functools.partial(block.__exit__, type(error), error, error.__traceback__)
                if not (ends() if held is None else held.unstopped(ends)):
                    raise
            else:
                block.close()
        finally:
            if held is not None and begins:
                held.note_rollback()
                held.end_transaction()

    # The driver, the application and the code that tags queries set these.

    @property
    def cursor_factory(self) -> Any:
        kind = self.threadbridge_cursor
        return kind if self.threadbridge_held is None else _tracking(kind)

    @cursor_factory.setter
    def cursor_factory(self, kind: Any) -> None:
        self.threadbridge_cursor = kind

    @property
    def server_cursor_factory(self) -> Any:
        return (
            _tracking(self.threadbridge_server_cursor)
            if self.threadbridge_held is not None
            else self.threadbridge_server_cursor
        )

    @server_cursor_factory.setter
    def server_cursor_factory(self, kind: Any) -> None:
        self.threadbridge_server_cursor = kind


class _TrackedCursor(Cursor[Any]):
    """What `_tracking` adds to a class of cursors."""

    __slots__ = ()

    def execute(self, query: Any, *args: Any, **kwargs: Any) -> Any:
        return self._run(False, super().execute, query, args, kwargs)

    def executemany(self, query: Any, *args: Any, **kwargs: Any) -> Any:
        return self._run(True, super().executemany, query, args, kwargs)

    def stream(self, query: Any, *args: Any, **kwargs: Any) -> Iterator[Any]:
        run = self._unobserved()
        end = object()
        with contextlib.closing(super().stream(query, *args, **kwargs)) as rows:  # type: ignore[type-var]
            while (row := run(next, rows, end)) is not end:
                yield row

    @contextlib.contextmanager
    def copy(self, statement: Any, *args: Any, **kwargs: Any) -> Iterator[Any]:
        run = self._unobserved()
        with contextlib.ExitStack() as stack:
            yield run(stack.enter_context, super().copy(statement, *args, **kwargs))

    def _run(self, is_many: bool, method: Callable[..., Any], query: Any, args: Any, kwargs: Any) -> Any:
        connection: Any = self.connection
        held: TrackedConnection = connection.threadbridge_held
        call = functools.partial(method, query, *args, **kwargs)
        if held.is_idle:
            return connection.threadbridge_guard.check(held, call)
        return held.execute(text_of(query, self), self, call, is_many=is_many)

    def _unobserved(self) -> Callable[..., Any]:
        """Prepare for a method whose end is not observed; returns what calls it, unless the request is cancelled."""
        connection: Any = self.connection
        held: TrackedConnection = connection.threadbridge_held
        borrow = None if held.is_idle else held.begin_unobserved()
        return _call if borrow is None else borrow.execute


def _call(function: Callable[..., Any], *args: Any) -> Any:
    return function(*args)


def guarded(kind: type[Connection[Any]], guard: _Guard) -> type[Any]:
    """A class of connections like ``kind`` that the guard makes and sees."""
    return type(f"Guarded{kind.__name__}", (_Base, kind), {"threadbridge_guard": guard})


@functools.cache
def _tracking(kind: Any) -> Any:
    if issubclass(kind, _TrackedCursor):
        return kind
    return type(f"Tracked{kind.__name__}", (_TrackedCursor, kind), {"__slots__": ()})
