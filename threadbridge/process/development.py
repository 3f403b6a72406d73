"""What a developer sees of each request: a readable line in the log, with slow and repeated SQL."""

from __future__ import annotations

import ipaddress
import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import suppress

from threadbridge.loop.bridge import Bridge
from threadbridge.process import logs
from threadbridge.settings.table import Settings
from threadbridge.telemetry.access_log import AccessLines, escaped
from threadbridge.telemetry.recent import RecentRequests
from threadbridge.telemetry.record import Record
from threadbridge.telemetry.repetitions import repetitions

logger = logging.getLogger("threadbridge")

# Seconds from which a statement is shown as slow.
SLOW = 0.1
# Characters of a statement in a line.
LONGEST = 200

# Select Graphic Rendition (ECMA-48): the color of a status by its first digit, and of what a line points out.
STATUS_COLORS = {"2": "32", "3": "36", "4": "33", "5": "31"}
SLOW_COLOR, REPEATED_COLOR, FAINT = "33", "35", "2"


def begin(bridge: Bridge, settings: Settings) -> None:
    """Keep the SQL of this bridge's requests, and show each request in a readable line of the log."""
    bridge.telemetry.recent = RecentRequests()
    bridge.telemetry.subscribe(bridge.telemetry.recent.read)
    for _, handler in logs.installed:
        if isinstance(handler.formatter, logs.TextFormatter) and not isinstance(handler, logging.FileHandler):
            handler.setFormatter(DevelopmentFormatter(has_colors=_shows_colors()))
    if not (settings["unix_socket"] or _is_loopback(settings["address"])):
        logger.warning(
            "made for development, this server shows source code, SQL and errors to all who can reach it, and it "
            "listens on %s; leave out --address, so that only this machine can",
            settings["address"] or "all interfaces",
        )


def _shows_colors() -> bool:
    """Whether standard error is a terminal, and colors are wanted there (https://no-color.org)."""
    with suppress(OSError, ValueError, AttributeError):
        return not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb" and sys.stderr.isatty()
    return False


def _is_loopback(address: str) -> bool:
    with suppress(ValueError):
        return ipaddress.ip_address(address).is_loopback
    return address == "localhost"


class DevelopmentFormatter(logs.TextFormatter):
    """As for operators, except for requests: the status, the time, the SQL, and what of it is slow or repeated."""

    def __init__(self, *, has_colors: bool) -> None:
        super().__init__(logs.FORMAT, color=has_colors)
        self._has_colors = has_colors

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter`."""
        if isinstance(record.msg, AccessLines) and record.msg.line is None:
            return "\n".join(line for each in record.msg.records for line in self._lines(each))
        return super().format(record)

    def _lines(self, record: Record) -> Iterator[str]:
        status = str(record.status)
        clock = time.strftime("%H:%M:%S", time.localtime(record.started_at + record.total))
        line = (
            f"{self._in(FAINT, clock)} {self._in(STATUS_COLORS.get(status[:1], '0'), status)} "
            f"{escaped(f'{record.method} {record.target}')} {_duration(record.total)}"
        )
        if record.wait >= SLOW:
            line += f", waited {_duration(record.wait)}"
        if record.statements:
            line += f", {record.statements} SQL {_duration(record.database)}"
        if record.ending != "done":
            line += f", {record.ending}"
        yield line
        statements = record.all_statements or ()
        for statement in statements:
            seconds = statement.ended - statement.started if statement.ended else 0.0
            if seconds >= SLOW or not statement.ended:
                took = _duration(seconds) if statement.ended else "unfinished"
                yield self._in(SLOW_COLOR, f"    slow: {took}: {_shown(statement.sql)}")
        for each in repetitions(statements, record.statements == len(statements)):
            what = "N+1" if each.is_n_plus_one else "repeated"
            text = f"    {what}: {each.times} times, {_duration(each.seconds)}: {_shown(each.text)}"
            yield self._in(REPEATED_COLOR, text)

    def _in(self, color: str, text: str) -> str:
        return f"\x1b[{color}m{text}\x1b[0m" if self._has_colors else text


def _duration(seconds: float) -> str:
    return f"{1000 * seconds:.1f} ms" if seconds < 0.01 else f"{1000 * seconds:.0f} ms"


def _shown(sql: str) -> str:
    """On one line, and without what could control the terminal."""
    text = " ".join("".join(character if character.isprintable() else " " for character in sql).split())
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
