"""The connections of a guarded pool of mysql-connector-python, and their cursors."""

from __future__ import annotations

import functools
from typing import Any

from mysql.connector.pooling import PooledMySQLConnection

from threadbridge.database.tracked_connection import TrackedConnection
from threadbridge.sql.statements import text_of


class GuardedPooledConnection(PooledMySQLConnection):
    """What the application gets from the pool: all else is the driver's own connection."""

    _cnx: Any

    def cursor(self, *args: Any, **kwargs: Any) -> Any:
        cursor: Any = self._cnx.cursor(*args, **kwargs)
        kind: Any = type(cursor)
        # Not a class given to the driver: that has one for each combination of its arguments.
        cursor.__class__ = _tracking(kind)
        cursor.threadbridge_held = self._cnx.threadbridge_held
        return cursor

    def commit(self) -> None:
        self._cnx.threadbridge_held.commit_by(self._cnx.commit)

    def rollback(self) -> None:
        self._cnx.threadbridge_held.roll_back_by(self._cnx.rollback)

    def close(self) -> None:
        connection, self._cnx = self._cnx, None
        if connection is not None:
            connection.threadbridge_held.guard.take_back(connection)


@functools.cache
def _tracking(kind: Any) -> Any:
    """The driver's class of cursors, extended. With one base only: otherwise no cursor could change to this class."""

    class TrackedCursor(kind):  # type: ignore[misc]
        threadbridge_held: TrackedConnection
        # Whether a method is running, which may call others of these.
        threadbridge_runs = False

        def execute(self, operation: Any, *args: Any, **kwargs: Any) -> Any:
            return self.threadbridge_run("execute", text_of(operation, self), operation, *args, **kwargs)

        def executemany(self, operation: Any, *args: Any, **kwargs: Any) -> Any:
            return self.threadbridge_run("executemany", text_of(operation, self), operation, *args, **kwargs)

        def callproc(self, procname: str, *args: Any, **kwargs: Any) -> Any:
            return self.threadbridge_run("callproc", f"CALL {procname}", procname, *args, **kwargs)

        def threadbridge_run(self, name: str, sql: str, *args: Any, **kwargs: Any) -> Any:
            call = functools.partial(getattr(super(), name), *args, **kwargs)
            if self.threadbridge_runs:
                return call()
            self.threadbridge_runs = True
            try:
                return self.threadbridge_held.execute(sql, self, call, is_many=name == "executemany")
            finally:
                self.threadbridge_runs = False

    return TrackedCursor
