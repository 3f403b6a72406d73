"""The record of a request that has ended: all that logs and metrics know of it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Final

from threadbridge.crossing.exchange import Exchange
from threadbridge.crossing.recent_use import BOUNDS, SHORT
from threadbridge.crossing.schedule import has_outgrown
from threadbridge.crossing.states import State
from threadbridge.http.fields import lines_of
from threadbridge.sql.statements import Statement

# What takes less is short in any case.
SHORT_SECONDS: Final = BOUNDS[SHORT - 1]


class Record:
    """A request that has ended: set once, then only read. Times in seconds.

    A new field of the access log needs an attribute here, with the value for a request that was refused unread; its
    assignment in `record_of`; its name in `threadbridge.telemetry.access_log.fields`; and a line in docs/operating.md,
    section "Log fields". The text line may change only after ``ending``: programs read it.
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
    # "http" or "https", as the client sees it.
    scheme = ""
    referer = ""
    user_agent = ""
    status = 0
    # Bytes of the response's body that were given to the connection.
    sent = 0
    # The value of its `State`.
    ending = ""
    # The lane's name; "" if it was refused unread.
    lane = ""
    # From when it came to the first proxy until its head was complete here; -1.0 if no proxy tells.
    before = -1.0
    has_waited = False
    has_run = False
    # From the end of the request until a thread took it, or until it ended without.
    wait = 0.0
    # From there until the response began, or until the request ended without a response.
    run = 0.0
    # The class in which it was queued or ran, "" if its lane does not schedule by cost; the seconds that such requests
    # usually take; and whether it ran for much longer. See `Estimate`.
    cost_class = ""
    expected = 0.0
    outgrown = False
    # Whether it was expected to be long, but would have been short in any case.
    overestimated = False
    # The number of statements, and how long they took together.
    statements = 0
    database = 0.0
    # From the end of the request's head until all ended.
    total = 0.0
    # See `Statements.outcome`. The only attribute that may change later: a thread that comes back brings the outcome.
    changes = "none"
    # In a remote lane: the host to which it was sent last, and the error type (RFC 9209, section 2.3) if that failed.
    upstream = ""
    upstream_error = ""
    # The request's span as W3C Trace Context writes it; "" if it is not traced.
    traceparent = ""
    # The latest statements of a slow request, which may still run; None if it was not slow.
    slow_statements: tuple[Statement, ...] | None = None
    # The latest statements of any request; None except during development.
    all_statements: tuple[Statement, ...] | None = None
    # What only the access log's own format shows, by the names there.
    kept: Mapping[str, str | int | float] | None = None
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
    peer = exchange.peer
    record.client = peer.address
    record.scheme = peer.scheme
    line = exchange.start_line
    record.method = line.method
    record.target = line.path
    record.version = line.version
    # Both `in` and `get` of `HTTPHeaders` are slow if there is no such field.
    lines = lines_of(exchange.headers)
    if "Referer" in lines:
        record.referer = exchange.headers["Referer"]
    if "User-Agent" in lines:
        record.user_agent = exchange.headers["User-Agent"]
    record.status = exchange.status
    record.sent = exchange.sent
    record.ending = str(exchange.state)
    record.lane = exchange.lane.name
    if exchange.before >= 0.0:
        record.before = exchange.before
    record.has_waited = queued_at > 0.0
    record.has_run = run_at > 0.0
    record.wait = wait
    record.run = run
    record.total = total
    estimate = exchange.estimate
    cost_class = estimate.cost_class
    if cost_class:
        record.cost_class = cost_class
        record.expected = estimate.seconds
        record.outgrown = has_outgrown(estimate, run)
        # A failure tells nothing of the cost, and a class that the settings give is no prediction.
        if cost_class == "long" and run_at and exchange.status < 500 and not estimate.pinned:
            record.overestimated = ended_at - run_at < SHORT_SECONDS and exchange.state is State.DONE
    record.started_at = time.time() - total
    trace = exchange.running.trace
    if trace is not None:
        record.traceparent = trace.traceparent
    upstream = exchange.upstream
    if upstream or exchange.upstream_error:
        record.upstream = upstream
        record.upstream_error = exchange.upstream_error
    statements = exchange.running.statements
    if statements.latest:
        record.statements = statements.count
        record.database = statements.seconds_until(ended_at)
        record.changes = statements.outcome
    if wait + run >= slow_after or record.database >= slow_after:
        record.slow_statements = tuple(statements.latest)
    return record
