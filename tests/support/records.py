"""Records of requests, for tests in which only some of their fields matter."""

from __future__ import annotations

from typing import Any

from threadbridge.telemetry.record import Record


def record(**fields: Any) -> Record:
    """One that was answered at once, but for what is said."""
    texts = dict.fromkeys(("id", "key", "client", "method", "target", "version", "lane", "referer", "user_agent"), "x")
    times = dict.fromkeys(("wait", "run", "database", "total", "started"), 0.0)
    plain: dict[str, Any] = {
        **texts,
        **times,
        "status": 200,
        "ending": "done",
        "sent": 0,
        "statements": 0,
        "changes": "none",
        "started_at": 1_700_000_000.9,
        "has_waited": True,
        "has_run": True,
        "slow_statements": None,
    }
    return Record(**(plain | fields))
