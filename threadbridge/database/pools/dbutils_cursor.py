"""Cursors of guarded connections: each statement is recorded, and none is run twice."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

from dbutils.steady_db import SteadyDBCursor

from threadbridge.database.pools.dbutils_connection import GuardedConnection
from threadbridge.sql.statements import text_of


class GuardedCursor(SteadyDBCursor):  # type: ignore[misc]
    """A cursor that executes no statement for a cancelled request."""

    _closed: bool
    _cursor: Any

    def __init__(self, connection: GuardedConnection, *args: Any, **kwargs: Any) -> None:
        self._lease = connection.lease
        super().__init__(connection, *args, **kwargs)
        self._made_by = connection.dbapi_connection

    def execute(self, *args: Any, **kwargs: Any) -> Any:
        return self._run("execute", args, kwargs)

    def _run(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        connection: GuardedConnection = self._con
        # The connection may be back in the pool already: with pool.connection().cursor(), it is at once.
        connection.finish_rollback()
        sql = _text(name, args, kwargs, self._cursor)
        return connection.run(sql, self, name == "executemany", self._execute, name, sql, args, kwargs)

    @property
    def rowcount(self) -> Any:
        """See PEP 249."""
        return self._cursor.rowcount

    def _execute(self, name: str, sql: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Run a statement; run it again, on a new connection, only where that can neither lose nor repeat a change.

        DBUtils runs it again whenever it fails, even if the statements before it were lost with their transaction.
        """
        connection: GuardedConnection = self._con
        is_first = connection.begin_statement(sql, self._cursor)
        if self._made_by is not connection.dbapi_connection and self._lease == connection.lease:
            self._renew()
        try:
            return self._call(name, args, kwargs)
        except connection._failures as error:
            may_repeat = is_first and not self._no_failover and connection.may_replace
            if not (may_repeat and connection.guard.may_repeat(error, sql)):
                raise
            connection.replace()
            self._renew()
            connection.sending(sql, self._cursor)
            return self._call(name, args, kwargs)

    def _call(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        sets_sizes = name.startswith("execute") and (self._inputsizes or self._outputsizes)
        if sets_sizes:
            self._setsizes()
        result = getattr(self._cursor, name)(*args, **kwargs)
        if sets_sizes:
            self._clearsizes()
        return result

    def _renew(self) -> None:
        """Continue with a cursor of the connection that replaced the lost one."""
        lost, self._cursor = self._cursor, self._con.dbapi_connection.cursor(*self._args, **self._kwargs)
        self._made_by = self._con.dbapi_connection
        with contextlib.suppress(Exception):
            lost.close()

    def __getattr__(self, name: str) -> Any:
        attribute = super().__getattr__(name)
        # A driver may have more of these than the DB-API; ``execute`` is a method of its own for speed.
        if name.startswith(("execute", "call")):
            return lambda *args, **kwargs: self._run(name, args, kwargs)
        if name.startswith(("copy", "stream")):
            # How these end is not observed.
            self._con.begin_unobserved()
        return attribute

    def close(self) -> None:
        """See `SteadyDBCursor`. The driver may fetch all remaining rows first."""
        if self._closed:
            return
        if self._lease != self._con.lease:
            # The connection is back in the pool, and may be in use by another thread.
            self._closed = True
        elif self._con.guard.must_not_wait():
            self._con.guard.leave_to_background(super().close)
        else:
            super().close()


def _text(name: str, args: Sequence[Any], kwargs: Mapping[str, Any], cursor: object) -> str:
    """The text of the statement that a method of the cursor is called with."""
    sql = args[0] if args else next(iter(kwargs.values()), "")
    if type(sql) is str and name != "callproc":
        return sql
    text = text_of(sql, cursor)
    return f"CALL {text}" if name == "callproc" else text
