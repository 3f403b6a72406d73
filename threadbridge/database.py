"""What the pool guard must know of a kind of database, and which kinds there are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class ConnectionSettings:
    """How the pool makes its connections: ``connect(*args, **kwargs)``."""

    connect: Callable[..., Any]
    args: Sequence[Any]
    kwargs: Mapping[str, Any]


class StopFailed(Exception):
    """A query could not be stopped now; ``transient`` says whether trying again may help."""

    def __init__(self, reason: str, transient: bool = True) -> None:
        super().__init__(reason)
        self.transient = transient


class Database(Protocol):
    """One kind of database. A module with a class like this, and a line in `database_of`, add another."""

    def identify(self, connection: Any) -> Any:
        """What `stop` needs to find the connection in its server; read when it is made. Worker side."""

    def stop(self, connection: Any, identity: Any) -> None:
        """Stop the statement that runs on the connection, if one does. The guard's thread, within a few seconds.

        Raises `StopFailed`.
        """

    def is_statement_error(self, error: BaseException) -> bool:
        """Whether the error means that a statement was stopped, on a connection that is in order."""

    def is_outage(self, error: BaseException) -> bool:
        """Whether the error means that the database cannot be reached."""

    def cancelled(self) -> Exception:
        """The error that the driver raises for a stopped statement, to be raised for one that is not begun."""


def database_of(driver: str, settings: ConnectionSettings) -> Database | None:
    """The kind of database that a driver module is for; None when it is not known here, and nothing can be stopped."""
    if driver in ("MySQLdb", "pymysql"):
        from threadbridge.mysql import MySQL

        return MySQL(driver, settings)
    if driver in ("psycopg", "psycopg2"):
        from threadbridge.postgresql import PostgreSQL

        return PostgreSQL(driver)
    return None
