"""Records of requests, for tests in which only some of their fields matter."""

from __future__ import annotations

from typing import Any

from threadbridge.telemetry.record import Record


def record(**fields: Any) -> Record:
    """A record of a request that was answered at once, except for these fields."""
    made = Record()
    for name in ("id", "key", "client", "method", "target", "version", "lane", "referer", "user_agent"):
        setattr(made, name, "x")
    made.status = 200
    made.ending = "done"
    made.has_waited = made.has_run = True
    made.started_at = 1_700_000_000.9
    for name, value in fields.items():
        setattr(made, name, value)
    return made
