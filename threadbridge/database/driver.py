"""What the pool guard needs to know about a kind of database."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from threadbridge.sql.transaction import Effect


@dataclass(frozen=True)
class ConnectionSettings:
    """How the pool makes its connections: ``connect(*args, **kwargs)``.

    :param takes_timeouts: whether ``connect`` is the driver's own, which takes timeouts; the application's may not.
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
    """The database session of one connection: what has been sent on it since it was made.

    :param only_reads: whether only plain queries were sent since the last commit or rollback.
    """

    only_reads: bool

    @property
    def is_changed(self) -> bool:
        """Whether its settings, variables, temporary tables or locks may differ from those when it was made.

        Raises what the driver raises when the connection is closed.
        """

    @property
    def may_be_open(self) -> bool:
        """Whether a transaction may be open. Raises what the driver raises when the connection is closed."""

    @property
    def commits_itself(self) -> bool:
        """Whether the last statement, if it changed data, was committed by itself (autocommit)."""

    def sending(self, sql: str, cursor: object) -> None:
        """Note that a cursor of the driver's, or a method such as ``commit``, is about to send a statement."""

    def effect(self, sql: str) -> Effect:
        """What the statement that was sent last, and succeeded, did to the transaction.

        Not for plain queries. Raises what the driver raises when the connection is closed.
        """

    def effect_of_failure(self, sql: str, error: BaseException, *, is_lost: bool, is_many: bool) -> Effect:
        """Like `effect`, for a statement that failed.

        :param is_lost: whether the connection was lost.
        :param is_many: whether it was ``executemany``.
        """

    def ended_transaction(self) -> None:
        """Note that a commit or a rollback has succeeded."""

    def begin_rollback(self) -> bool:
        """Send a rollback without waiting for the answer, if nothing depends on that; returns whether it was sent."""

    def end_rollback(self) -> None:
        """Read the answer to that rollback; raises the driver's error."""


class Database(Protocol):
    """A kind of database.

    To add one, add a module to `drivers` with a class like this, and a line to `drivers.database_of`.

    :param driver: the name of the driver's package.
    :param defaults: arguments of ``connect`` that apply unless the pool's settings contain them.
    :param timeouts: arguments of ``connect`` for connections that must not hang; these override the pool's settings.
    """

    driver: str
    defaults: Mapping[str, Any]
    timeouts: Mapping[str, Any]

    def identify(self, connection: Any) -> Any:
        """What identifies the connection in its server, read when it is made."""

    def number(self, identity: Any) -> int | None:
        """The connection's number in the database's process list.

        :param identity: as `identify` returned it.
        """

    def parts_of(self, identity: Any) -> list[Any] | None:
        """The identity as JSON for another process; None if another process could not find the connection by it."""

    def identity_of(self, parts: list[Any]) -> Any:
        """The inverse of `parts_of`. Raises ``TypeError`` if the parts are not from there."""

    def prepare(self, connection: Any, comment: Callable[[], str] | None) -> Session:
        """Start observing what is sent on the connection.

        :param comment: called for each statement, and gives the text to put in front of it; None for no text.
        """

    def keep_control(self) -> None:
        """Make or check the control connection, if `stop_query` or `kill` will need one. In a bounded call.

        Raises `StopFailed`.
        """

    def stop_query(self, connection: Any, identity: Any, *, waits: bool = False) -> bool:
        """Stop the statement that is running on the connection; returns whether there was one.

        :param waits: whether a thread is waiting for the answer to a statement, so that one is running, or about to.

        In a bounded call (see `bounded_calls`): any thread, and several may call it at once. Raises `StopFailed`.
        """

    def kill(self, identity: Any) -> bool:
        """End the connection in the server; returns whether it had already ended. In a bounded call.

        Raises `StopFailed`.
        """

    def close(self) -> None:
        """Close the control connection, and keep none from now on."""

    def is_statement_error(self, error: BaseException) -> bool:
        """Whether the error means that a statement was stopped while its connection is intact."""

    def is_outage(self, error: BaseException) -> bool:
        """Whether the error means that the database cannot be reached, or cannot do its work for now."""

    def is_lost(self, error: BaseException) -> bool:
        """Whether the error is an outage in which the connection was lost, and its transaction with it."""

    def cancelled(self) -> Exception:
        """The error that the driver raises for a stopped statement, to be raised for one that is refused."""
