"""What one process is doing now, for JSON."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable
from typing import Any

from threadbridge.crossing.exchange import Exchange
from threadbridge.crossing.lanes import Lane
from threadbridge.crossing.schedule import has_outgrown
from threadbridge.crossing.states import State
from threadbridge.loop.bridge import Bridge
from threadbridge.telemetry.history import LONGEST_TARGET, History

# Requests listed: nobody reads thousands.
MOST_ROWS = 200
# Characters.
LONGEST_SQL = 2000
# The attributes of `Lane` that are shown.
LANE = ("name", "threads", "busy", "queued", "queue", "kept", "short_below")
# The names of the states on the page.
SHOWN = {
    State.RECEIVING: "receiving",
    State.QUEUED: "waiting",
    State.RUNNING: "running",
    State.RESPONDING: "sending",
}


def snapshot(
    bridge: Bridge, history: History, is_wanted: Callable[[str, str], bool] = lambda key, id: True
) -> dict[str, Any]:
    """The process's lanes, its requests (running ones first, then by age), and those that ended recently.

    :param is_wanted: whether to list the request with this key and this id; all are counted.
    """
    now, wall = time.monotonic(), time.time()
    counts = dict.fromkeys(SHOWN.values(), 0)
    for exchange in bridge.exchanges.open:
        if exchange.state in SHOWN:
            counts[SHOWN[exchange.state]] += 1
    listed = (each for each in bridge.exchanges.open if is_wanted(each.key, each.id))
    oldest = heapq.nsmallest(MOST_ROWS, listed, key=lambda each: (not each.run_at, _since(each)))
    starts = {
        job: seconds for lane in bridge.lanes if lane.short_below for job, seconds in lane.expected_starts().items()
    }
    bridge.telemetry.flush()
    return {
        "now": wall,
        "lanes": [{**{name: getattr(lane, name) for name in LANE}, **_hosts(bridge, lane)} for lane in bridge.lanes],
        "counts": counts,
        "requests": [_row(exchange, now, wall, starts.get(exchange)) for exchange in oldest],
        "finished": [row for row in history.finished() if is_wanted(row["key"], row["id"])],
        "slots": history.slots(),
    }


def _hosts(bridge: Bridge, lane: Lane) -> dict[str, Any]:
    """The other hosts, if this is a remote lane."""
    if not lane.upstream:
        return {}
    hosts = bridge.forwarding.upstreams[lane].hosts
    return {"hosts": [{"name": host.name, "running": host.running, "up": host.is_up} for host in hosts]}


def _since(exchange: Exchange) -> float:
    """When its present state began: running, waiting or receiving."""
    return exchange.run_at or exchange.queued_at or exchange.started


def _prediction(exchange: Exchange, now: float) -> dict[str, Any]:
    """The class of the request, the seconds that such ones usually take, and whether it has run for much longer."""
    estimate, run_at = exchange.estimate, exchange.run_at
    if not estimate.cost_class:
        return {"class": "", "expected": None, "outgrown": False}
    return {
        "class": estimate.cost_class,
        "expected": estimate.seconds if estimate.is_known else None,
        "outgrown": has_outgrown(estimate, (exchange.answered_at or now) - run_at if run_at else 0.0),
    }


def _row(exchange: Exchange, now: float, wall: float, starts_in: float | None) -> dict[str, Any]:
    began = exchange.run_at or exchange.answered_at or now
    statements = exchange.running.statements
    # Read once: the worker changes it at the same time.
    latest = statements.latest[-1] if statements.latest else None
    running = latest if latest is not None and not latest.ended else None
    return {
        "key": exchange.key,
        "id": exchange.id,
        "state": SHOWN.get(exchange.state, exchange.state.value),
        "client": exchange.client[:100],
        "method": exchange.start_line.method,
        "url": exchange.start_line.path[:LONGEST_TARGET],
        "lane": exchange.lane.name,
        "upstream": exchange.upstream,
        "received": wall - (now - exchange.started),
        "since": wall - (now - _since(exchange)),
        "waiting": round(max(0.0, began - exchange.queued_at), 4) if exchange.queued_at else 0,
        "running": round(now - exchange.run_at, 4) if exchange.run_at else 0,
        "time_left": round(exchange.running.deadline - now, 1) if exchange.running.deadline else None,
        **_prediction(exchange, now),
        "starts_in": None if starts_in is None else round(starts_in, 4),
        "sent": exchange.sent,
        "statements": statements.count,
        "changes": statements.outcome,
        "database": round(statements.seconds + (now - running.started if running else 0), 4),
        "sql": running.sql[:LONGEST_SQL] if running else None,
        "sql_running": round(now - running.started, 4) if running else None,
        "connection": running.connection_id if running else None,
    }
