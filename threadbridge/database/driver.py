"""What the pool guard must know of a kind of database."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from threadbridge.sql.transaction import Effect


@dataclass(frozen=True)
class ConnectionSettings:
    """How the pool makes its connections: ``connect(*args, **kwargs)``.

    A driver's own function takes timeouts, too; one of the application's need not.

    :param statement_limit: seconds that a statement on a connection of the pool may take; 0 for no limit.
    """

    connect: Callable[..., Any]
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    takes_timeouts: bool = True
    statement_limit: float = 0.0


class StopFailed(Exception):
    """A query could not be stopped now; trying again may help."""


class Session(Protocol):
    """What has been done on one connection since it was made. Worker side.

    :param only_reads: whether nothing but plain queries was sent since the last commit or rollback.
    """

    only_reads: bool

    @property
    def is_changed(self) -> bool:
        """Whether its settings, variables, temporary tables or locks may be others than when it was made.

        Raises what the driver raises when the connection is closed.
        """

    @property
    def may_be_open(self) -> bool:
        """Whether a transaction may be open. Raises what the driver raises when the connection is closed."""

    @property
    def commits_itself(self) -> bool:
        """Whether the last statement, if it changed anything, would have been committed with that."""

    def sending(self, sql: str, cursor: object) -> None:
        """A statement is about to be sent, by a cursor of the driver's or a method such as its ``commit``."""

    def effect(self, sql: str) -> Effect:
        """What the statement that was sent last, and succeeded, has done to the transaction.

        For those that are no plain queries. Raises what the driver raises when the connection is closed.
        """

    def effect_of_failure(self, sql: str, error: BaseException, *, is_lost: bool, is_many: bool) -> Effect:
        """As `effect`, for a statement that has failed.

        :param is_lost: whether the connection was lost.
        :param is_many: whether it was ``executemany``.
        """

    def ended_transaction(self) -> None:
        """A commit or a rollback has succeeded."""

    def begin_rollback(self) -> bool:
        """Send a rollback, unless somebody might see whether it is done already; whether it was sent."""

    def end_rollback(self) -> None:
        """Wait for its answer; raises the driver's error."""


class Database(Protocol):
    """One kind of database.

    A module in `drivers` with a class like this, and a line in `drivers.database_of`, add another.
    """

    # The name of the driver's package.
    driver: str
    # For connections whose settings say nothing about it.
    defaults: Mapping[str, Any]
    # For connections that must not hang, whatever their settings say.
    timeouts: Mapping[str, Any]

    def identify(self, connection: Any) -> Any:
        """What `stop` needs to find the connection in its server; read when it is made. Worker side."""

    def number(self, identity: Any) -> int | None:
        """The connection's number in the database's list of processes, by what `identify` gave. Worker side."""

    def parts_of(self, identity: Any) -> list[Any] | None:
        """What `identify` gave, to be written down for another process; None if that could not find the connection."""

    def identity_of(self, parts: list[Any]) -> Any:
        """The opposite of `parts_of`. Raises ``TypeError`` for what that has not given."""

    def prepare(self, connection: Any, comment: Callable[[], str] | None) -> Session:
        """Watch what is sent on the connection, and begin it with what ``comment`` gives then, if there is one.

        Worker side.
        """

    def keep_control(self) -> None:
        """See to it that `stop` and `end` need no new connection, if they need one. In a bounded call.

        Raises `StopFailed`.
        """

    def stop(self, connection: Any, identity: Any, *, waits: bool = False) -> bool:
        """Stop the statement that runs on the connection; whether there is one.

        :param waits: whether a thread waits for the answer to a statement, so that one runs, or is about to.

        In a bounded call (see `bounded_calls`): any thread, perhaps several at a time. Raises `StopFailed`.
        """

    def end(self, identity: Any) -> bool:
        """End the connection in the server; whether it is seen to have ended. In a bounded call.

        Raises `StopFailed`.
        """

    def close(self) -> None:
        """Keep no connection for `stop` and `end` any more."""

    def is_statement_error(self, error: BaseException) -> bool:
        """Whether the error means that a statement was stopped, on a connection that is in order."""

    def is_outage(self, error: BaseException) -> bool:
        """Whether the error means that the database cannot be reached, or cannot do its work for now."""

    def is_lost(self, error: BaseException) -> bool:
        """Whether it is such an error, and the connection and what was begun on it has gone with it."""

    def cancelled(self) -> Exception:
        """The error that the driver raises for a stopped statement, to be raised for one that is not begun."""
