"""The record of a request that has ended: all that logs and metrics know of it."""

from __future__ import annotations

import time

from threadbridge.crossing.exchange import Exchange
from threadbridge.sql.statements import Statement


class Record:
    """A request that has ended: set once, then only read. Times in seconds.

    A new field of the access log needs an attribute here, with the value for a request that was refused unread; its
    assignment in `record_of`; its name in `threadbridge.telemetry.access_log.fields`; and a line in docs/operating.md,
    section "Log fields". The text line should not change: programs read it.
    """

    # Its name in all logs, and its unique name in its process; "" if it was refused unread.
    id = ""
    key = ""
    # "" on a Unix socket.
    client = ""
    # As the client sent them, and unchecked if the request was refused; "" if they are missing.
    method = ""
    target = ""
    version = ""
    referer = ""
    user_agent = ""
    status = 0
    # Bytes of the response's body that were given to the connection.
    sent = 0
    # The value of its `State`.
    ending = ""
    # The lane's name; "" if it was refused unread.
    lane = ""
    has_waited = False
    has_run = False
    # From the end of the request until a thread took it, or until it ended without.
    wait = 0.0
    # From there until the response began, or until the request ended without a response.
    run = 0.0
    # The number of statements, and how long they took together.
    statements = 0
    database = 0.0
    # From the end of the request's head until all ended.
    total = 0.0
    # See `Statements.outcome`. The only attribute that may change later: a thread that comes back brings the outcome.
    changes = "none"
    # The latest statements of a slow request, which may still run; None if it was not slow.
    slow_statements: tuple[Statement, ...] | None = None
    # When the request's head was complete, in seconds since 1970.
    started_at = 0.0


def record_of(exchange: Exchange, slow_after: float) -> Record:
    """The record of an ended exchange, which is slow if it waited and ran, or used the database, for so long."""
    record = Record()
    ended_at = exchange.ended_at
    queued_at = exchange.queued_at
    answered_at = exchange.answered_at or ended_at
    # A worker may have taken the request just as it ended.
    run_at = min(exchange.run_at, answered_at)
    total = ended_at - exchange.started
    wait = (run_at or ended_at) - queued_at if queued_at else 0.0
    run = answered_at - run_at if run_at else 0.0
    record.id = exchange.id
    record.key = exchange.key
    record.client = exchange.peer.address
    line = exchange.start_line
    record.method = line.method
    record.target = line.path
    record.version = line.version
    headers = exchange.headers
    # `get` is slow if there is no such field.
    if "Referer" in headers:
        record.referer = headers["Referer"]
    if "User-Agent" in headers:
        record.user_agent = headers["User-Agent"]
    record.status = exchange.status
    record.sent = exchange.sent
    record.ending = str(exchange.state)
    record.lane = exchange.lane.name
    record.has_waited = queued_at > 0.0
    record.has_run = run_at > 0.0
    record.wait = wait
    record.run = run
    record.total = total
    record.started_at = time.time() - total
    statements = exchange.running.statements
    if statements.latest:
        latest = statements.latest[-1]
        # A statement that is still running counts up to the end of the request.
        running = 0.0 if latest.ended else max(0.0, ended_at - latest.started)
        record.statements = statements.count
        record.database = statements.seconds + running
        record.changes = statements.outcome
    if wait + run >= slow_after or record.database >= slow_after:
        record.slow_statements = tuple(statements.latest)
    return record
