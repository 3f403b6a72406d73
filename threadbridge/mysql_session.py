"""What has been done on one MySQL connection: whether it only read, and whether its session is still as it was made."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import Any

from threadbridge.sql_effects import may_change_session, only_reads

# Methods of the driver's connection that change the session without a statement.
_CHANGING = ("change_user", "select_db", "set_character_set", "set_server_option")


class MySQLSession:
    """Sees all statements on a connection as they are sent, with their parameters in them. Worker side.

    See `threadbridge.database.Session`.

    :param unbuffered: the class of cursors whose rows come while they are fetched.
    :param without_limit: the first word of their queries, and what takes its place so that they have no limit of time;
        None if there is none.
    """

    def __init__(
        self,
        connection: Any,
        comment: Callable[[], str] | None,
        unbuffered: type,
        without_limit: tuple[bytes, bytes] | None,
    ) -> None:
        # No cycle: a connection that is forgotten is closed at once.
        self._connection = weakref.ref(connection)
        self._query = type(connection).query
        self._comment = comment
        self._unbuffered = unbuffered
        self._without_limit = without_limit
        self._is_unbuffered = False
        self.only_reads = True
        self._is_changed = False
        self._can_send = hasattr(connection, "send_query")
        self._made_with_autocommit = connection.get_autocommit()
        self.autocommits = bool(self._made_with_autocommit)
        connection.query = self.query
        for name in _CHANGING:
            method = getattr(type(connection), name, None)
            if method is not None:
                setattr(connection, name, functools.partial(self._change, method))

    def query(self, sql: str | bytes | bytearray, *args: Any, **kwargs: Any) -> Any:
        """Takes the place of the driver's method."""
        if not (isinstance(sql, bytes) and only_reads(sql)):
            self.only_reads = False
            self.autocommits = bool(self._connection().get_autocommit())  # type: ignore[union-attr]
            if not self._is_changed:
                self._is_changed = may_change_session(sql.encode() if isinstance(sql, str) else bytes(sql))
        if self._is_unbuffered:
            self._is_unbuffered = False
            sql = self._unlimited(sql)
        if self._comment is not None:
            comment = self._comment()
            sql = comment + sql if isinstance(sql, str) else comment.encode() + sql
        return self._query(self._connection(), sql, *args, **kwargs)

    def _change(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._is_changed = True
        return method(self._connection(), *args, **kwargs)

    def sending(self, sql: str, cursor: object) -> None:
        """See `threadbridge.database.Session`; `query` sees it, and what the application sends by itself."""
        self._is_unbuffered = self._without_limit is not None and isinstance(cursor, self._unbuffered)

    def _unlimited(self, sql: str | bytes | bytearray) -> str | bytes | bytearray:
        assert self._without_limit is not None
        word, replacement = self._without_limit
        text = sql.lstrip()
        first, rest = text[: len(word)], text[len(word) :]
        if isinstance(first, str) and isinstance(rest, str):
            return replacement.decode() + rest if first.lower() == word.decode() else sql
        assert isinstance(first, (bytes, bytearray)) and isinstance(rest, (bytes, bytearray))
        return replacement + rest if first.lower() == word else sql

    def ended_transaction(self) -> None:
        """See `threadbridge.database.Session`."""
        self.only_reads = True

    @property
    def is_changed(self) -> bool:
        """See `threadbridge.database.Session`."""
        connection: Any = self._connection()
        return self._is_changed or connection.get_autocommit() != self._made_with_autocommit

    def begin_rollback(self) -> bool:
        """See `threadbridge.database.Session`: it lets go of a snapshot; locks are let go before anybody goes on."""
        only_reads, self.only_reads = self.only_reads, True
        if only_reads and self._can_send:
            self._connection().send_query(b"ROLLBACK")  # type: ignore[union-attr]
            return True
        return False

    def end_rollback(self) -> None:
        """See `threadbridge.database.Session`."""
        self._connection().read_query_result()  # type: ignore[union-attr]
