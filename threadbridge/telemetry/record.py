"""The record of a request that has ended: all that logs and metrics have of it."""

from __future__ import annotations

import time

from threadbridge.crossing.exchange import Exchange
from threadbridge.sql.statements import Statement


class Record:
    """A request that has ended, for everybody to read and nobody to change. Times in seconds.

    :param id: its name in all logs; "" for one that was refused before it was a request.
    :param key: tells it from all other requests of its process; "" as for ``id``.
    :param client: the client's address, "" on a Unix socket.
    :param target: path and query, as the client sent them.
    :param version: the protocol's, such as ``HTTP/1.1``; of what was refused, as ``method`` and ``target``, unchecked.
    :param ending: the value of its `State`.
    :param lane: the lane's name; "" for one that was refused.
    :param sent: bytes of the response's body that were given to the connection.
    :param wait: from the end of the request until a thread took it, or until it ended without.
    :param run: from there until the response began, or until the request ended without a response.
    :param database: how long its statements took together.
    :param total: from the end of the request's head until all ended.
    :param statements: how many there were.
    :param changes: what had become of its changes to the data when it ended, see `Statements.outcome`. The only
        attribute that may change later: a thread that comes back brings the final outcome.
    :param started_at: when the request's head was there: seconds since 1970.
    :param started: the same by `time.monotonic`.
    :param has_waited: whether it was queued for a thread.
    :param has_run: whether a thread took it.
    :param slow_statements: of a slow request its latest statements, which may still run; None of any other.
    """

    def __init__(
        self,
        id: str,
        key: str,
        client: str,
        method: str,
        target: str,
        version: str,
        status: int,
        ending: str,
        lane: str,
        sent: int,
        wait: float,
        run: float,
        database: float,
        total: float,
        statements: int,
        changes: str,
        started_at: float,
        started: float,
        referer: str,
        user_agent: str,
        has_waited: bool,
        has_run: bool,
        slow_statements: tuple[Statement, ...] | None,
    ) -> None:
        self.id = id
        self.key = key
        self.client = client
        self.method = method
        self.target = target
        self.version = version
        self.status = status
        self.ending = ending
        self.lane = lane
        self.sent = sent
        self.wait = wait
        self.run = run
        self.database = database
        self.total = total
        self.statements = statements
        self.changes = changes
        self.started_at = started_at
        self.started = started
        self.referer = referer
        self.user_agent = user_agent
        self.has_waited = has_waited
        self.has_run = has_run
        self.slow_statements = slow_statements


def record_of(exchange: Exchange, slow_after: float) -> Record:
    """The record of an exchange that has ended. Loop side.

    :param slow_after: seconds of waiting and running, or in the database, from which on it is slow.
    """
    line = exchange.start_line
    headers = exchange.headers
    ended_at = exchange.ended_at
    queued_at = exchange.queued_at
    answered_at = exchange.answered_at or ended_at
    run_at = exchange.run_at
    if run_at > answered_at:
        # A worker has taken it in the very moment in which it ended.
        run_at = answered_at
    wait = (run_at or ended_at) - queued_at if queued_at else 0.0
    run = answered_at - run_at if run_at else 0.0
    total = ended_at - exchange.started
    count, database, changes = 0, 0.0, "none"
    statements = exchange.running.statements
    if statements.latest:
        latest = statements.latest[-1]
        # One that runs on counts until nobody waited for it any more.
        running = 0.0 if latest.ended else max(0.0, ended_at - latest.started)
        count, database = statements.count, statements.seconds + running
        changes = statements.outcome
    is_slow = wait + run >= slow_after or database >= slow_after
    return Record(
        exchange.id,
        exchange.key,
        exchange.peer.address,
        line.method,
        line.path,
        line.version,
        exchange.status,
        str(exchange.state),
        exchange.lane.name,
        exchange.sent,
        wait,
        run,
        database,
        total,
        count,
        changes,
        time.time() - total,
        exchange.started,
        # `get` is slow for what is not there.
        headers["Referer"] if "Referer" in headers else "",  # noqa: SIM401
        headers["User-Agent"] if "User-Agent" in headers else "",  # noqa: SIM401
        queued_at > 0.0,
        run_at > 0.0,
        tuple(statements.latest) if is_slow else None,
    )
