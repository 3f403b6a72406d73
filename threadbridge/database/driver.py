"""What the pool guard needs to know about a kind of database."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from threadbridge.sql.effects import only_reads
from threadbridge.sql.transaction import Effect

# Returns a statement with comments added. Worker side.
Tag = Callable[[Any], Any]


@dataclass(frozen=True)
class ConnectionSettings:
    """How the pool makes its connections: ``connect(*args, **kwargs)``."""

    connect: Callable[..., Any]
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    # The driver's own function does; the application's may not.
    takes_timeouts: bool = True
    # Seconds that a statement on a connection of the pool may take; 0 for no limit.
    statement_limit: float = 0.0
    # Whether it is a replica, on which no request may change anything.
    is_replica: bool = False
    # The database's, for operators, where the arguments do not give it.
    name: str = ""

    def connect_within(self, timeouts: Mapping[str, Any]) -> Any:
        """Connect; if ``connect`` takes timeouts, these override the settings. Raises what the driver raises."""
        return self.connect(*self.args, **{**self.kwargs, **(timeouts if self.takes_timeouts else {})})


class UnsupportedDriver(Exception):
    """This version of a driver lacks what is needed to stop its queries."""


def _place(parameters: Mapping[str, Any]) -> list[Any]:
    """The database, the host or Unix socket, and the port that these parameters name; None for each one missing."""
    return [
        next((parameters[name] for name in names if parameters.get(name)), None)
        for names in (("database", "db", "dbname"), ("unix_socket", "host"), ("port",))
    ]


def name_of(driver: str, settings: ConnectionSettings, parameters: Mapping[str, Any]) -> str:
    """The database in the log, by the parameters that lead to it, for example ``database 'shop' at 10.0.0.3:3307``."""
    if settings.name:
        return settings.name
    database, host, port = _place(parameters)
    name = f"the {driver} database" if database is None else f"database {database!r}"
    if host is None:
        return name
    is_path = str(host).startswith("/")
    return f"{name} at {host}" if port is None or is_path else f"{name} at {host}:{port}"


def attributes_of(system: str, parameters: Mapping[str, Any]) -> dict[str, str | int]:
    """The database in traces, by the names of OpenTelemetry's conventions; ``system`` is what they call its kind."""
    database, host, port = _place(parameters)
    found: dict[str, str | int] = {"db.system.name": system}
    if database is not None:
        found["db.namespace"] = str(database)
    if host is not None:
        found["server.address"] = str(host)
        if str(port).isdigit() and not str(host).startswith("/"):
            found["server.port"] = int(port)
    return found


class StopFailed(Exception):
    """A query could not be stopped now; trying again may help."""


class Session(Protocol):
    """What has been sent on one connection. Once that is closed, members may raise what the driver raises."""

    # Whether only plain queries were sent since the last commit or rollback.
    only_reads: bool

    @property
    def is_changed(self) -> bool:
        """Whether its settings, variables, temporary tables or locks may differ from those when it was made."""

    @property
    def may_be_open(self) -> bool:
        """Whether a transaction may be open."""

    @property
    def commits_itself(self) -> bool:
        """Whether the last statement, if it changed data, was committed by itself (autocommit)."""

    def sending(self, sql: str, cursor: object) -> None:
        """Note that a cursor of the driver's, or a method such as ``commit``, is about to send a statement."""

    def effect(self, sql: str) -> Effect:
        """What the statement that was sent last, and succeeded, did to the transaction. Not for plain queries."""

    def effect_of_failure(self, sql: str, error: BaseException, *, is_lost: bool, is_many: bool) -> Effect:
        """Like `effect`, for a statement that failed; ``is_many`` for ``executemany``."""

    def ended_transaction(self) -> None:
        """Note that a commit or a rollback has succeeded."""

    def begin_rollback(self) -> Callable[[], object] | None:
        """Send a rollback without waiting for the answer, if nothing depends on that.

        Returns a function that reads the answer, and raises the driver's error; None if nothing was sent.
        """


class UnknownSession:
    """A `Session` for unsupported drivers: any statement but a plain query may have done anything to the data."""

    only_reads = may_be_open = True
    # Changes of settings are not detected.
    is_changed = commits_itself = False

    def sending(self, sql: str, cursor: object) -> None:
        self.only_reads = self.only_reads and self.effect(sql) is Effect.NOTHING

    def effect(self, sql: str) -> Effect:
        return Effect.NOTHING if only_reads(sql.encode(errors="replace")) else Effect.UNKNOWN

    def effect_of_failure(self, sql: str, error: BaseException, *, is_lost: bool, is_many: bool) -> Effect:
        return self.effect(sql)

    def ended_transaction(self) -> None:
        self.only_reads = True

    def begin_rollback(self) -> None:
        pass


class Identity(Hashable, Iterable[Any], Protocol):
    """Identifies a connection in its server: a named tuple of values that can be written as JSON."""

    @property
    def number(self) -> int:
        """The connection's number in the database's process list."""

    @property
    def server(self) -> str:
        """Names the server among those of the database: calls to one do not wait for another."""

    @property
    def obstacle(self) -> str:
        """Why the connection's statements cannot be stopped; "" if they can."""

    @property
    def is_findable(self) -> bool:
        """Whether another process can find the connection by this."""


class Replication(Protocol):
    """What a kind of database tells of a replica. Its functions raise what the driver raises."""

    def position(self, primary: Any) -> tuple[float, str]:
        """The time by the clock of the server, since 1970, and what it has committed by then, or later.

        Raises ``ValueError`` if the server does not tell that; it says what to do.
        """

    def has_reached(self, replica: Any, position: str, within: float = 0.0) -> bool:
        """Whether the server has applied everything up to this position, or does so within these seconds.

        Raises ``ValueError`` if it is not read-only; it says what to do.
        """

    def is_refused_change(self, error: BaseException) -> bool:
        """Whether a statement has failed because nothing may be changed on this server or connection."""


@runtime_checkable
class ReplicatedDatabase(Protocol):
    """A `Database` whose replicas are supported."""

    def replication(self) -> Replication: ...


class Database(Protocol):
    """A kind of database. Several threads may call it at once.

    ``keep_control``, ``stop_query`` and ``kill`` are called in `bounded_calls`, and raise `StopFailed`.
    """

    # The name of the driver's package.
    driver: str
    # The database in the log, without its password: see `name_of`.
    name: str
    # The database in traces: see `attributes_of`. An implementation may leave it out.
    attributes: Mapping[str, str | int]
    identity: type[Any]
    # Arguments of ``connect`` that apply unless the pool's settings contain them.
    defaults: Mapping[str, Any]
    # Arguments of ``connect`` for connections that must not hang; these override the pool's settings.
    timeouts: Mapping[str, Any]

    def descriptor(self, connection: Any) -> int | None:
        """The file descriptor of the connection's socket; None if it has none, or the driver does not reveal it.

        Also for a connection that the driver has not finished making. Raises anything if the connection is closed.
        """

    def identify(self, connection: Any) -> Any:
        """The identity of a connection that was just made; None if it ends with its process, like a file's."""

    def prepare(self, connection: Any, identity: Any, tag: Tag | None) -> Session:
        """Start observing what is sent on the connection; ``tag`` adds comments to each."""

    def keep_control(self, server: str) -> None:
        """Make or check the control connection to a server, if `stop_query` or `kill` will need one.

        The server is `Identity.server`, or "" if there is no identity.
        """

    def stop_query(self, connection: Any, identity: Any, *, waits: bool = False) -> bool:
        """Stop the connection's statement; returns whether one was running. ``waits``: a thread waits for an answer."""

    def kill(self, identity: Any) -> bool:
        """End the connection in the server; returns whether it had already ended."""

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
