"""The access log: a line for each request, in the combined format of Apache and nginx, and a few fields more."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Final

from tornado.log import access_log

from threadbridge.sql.statements import as_field
from threadbridge.telemetry.record import Record

# The %b of `time.strftime` in an English locale.
MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


class AccessLines:
    """The message of a log record that stands for one request or several. Any thread.

    :param line: makes a line of a record and the time of its end; None for the usual line.
    """

    def __init__(self, records: Sequence[Record], line: Callable[[Record, str], str] | None = None) -> None:
        self.records = records
        self.line = line
        # Kept because handlers that limit the size of their file format each record twice.
        self._text = ""
        self._json = ""

    def __str__(self) -> str:
        # For log records with the three arguments of `write`: `str(msg) % args` must not show them.
        return f"{self.text.replace('%', '%%')}%.0s%.0s%.0s"

    @property
    def text(self) -> str:
        """A line for each request."""
        if not self._text:
            lines = []
            second, stamp = 0, ""
            for record in self.records:
                ended_at = int(record.started_at + record.total)
                if ended_at != second:
                    second, moment = ended_at, time.localtime(ended_at)
                    stamp = time.strftime(f"%d/{MONTHS[moment.tm_mon - 1]}/%Y:%H:%M:%S %z", moment)
                lines.append(_line(record, stamp) if self.line is None else self.line(record, stamp))
            self._text = "\n".join(lines)
        return self._text

    @property
    def json(self) -> str:
        """A JSON object for each request, one a line."""
        if not self._json:
            lines = []
            for record in self.records:
                head = {"time": iso_time(record.started_at + record.total), "level": "info", "logger": access_log.name}
                lines.append(json.dumps({**head, **fields(record)}))
            self._json = "\n".join(lines)
        return self._json


def write(records: Sequence[Record], line: Callable[[Record, str], str] | None = None) -> None:
    """Log these requests to ``tornado.access``. A reader of the telemetry; for ``line`` see `AccessLines`.

    Each has a log record with the attributes of `fields` and the ``args`` of `tornado.web.Application.log_request`. If
    only this package's handlers see them, one log record stands for all: under load 1 µs a request instead of 20.
    """
    if not access_log.isEnabledFor(logging.INFO):
        return
    is_one = _only_own_handlers_see_it()
    for group in [records] if is_one else [[record] for record in records]:
        # Not `access_log.info`: it looks for the calling function, which is not on Python's stack when compiled.
        log_record = access_log.makeRecord(
            access_log.name, logging.INFO, "access_log.py", 0, AccessLines(group, line), (), None, "write"
        )
        if not is_one:
            record = group[0]
            log_record.args = (record.status, f"{record.method} {record.target} ({record.client})", 1000 * record.total)
            # Not `extra`: it refuses names that the application's record factory has used.
            log_record.__dict__.update(fields(record))
        access_log.handle(log_record)


def _only_own_handlers_see_it() -> bool:
    """Whether all readers of the log records know that `AccessLines` may stand for several requests."""
    # Sentry replaces this method to read all records.
    if access_log.filters or logging.Logger.callHandlers.__module__ != logging.__name__:
        return False
    logger: logging.Logger | None = access_log
    while logger is not None:
        for handler in logger.handlers:
            if handler.level <= logging.INFO and not all(
                getattr(each, "knows_access_lines", False) for each in (handler.formatter, *handler.filters)
            ):
                return False
        logger = logger.parent if logger.propagate else None
    return True


def escaped(text: str) -> str:
    """The text as nginx logs it: quotes, backslashes and all but printable ASCII as ``\\xHH``. Any thread."""
    if _is_plain(text):
        return text
    # A request's head is decoded as latin-1, so that each character is a byte.
    return "".join(
        character if _is_plain(character) else f"\\x{byte:02X}"
        for character in text
        for byte in character.encode("latin-1", "backslashreplace")
    )


def iso_time(seconds: float) -> str:
    """A time since 1970 in UTC, to the millisecond (RFC 3339). Any thread."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


def _line(record: Record, stamp: str) -> str:
    request = f"{record.method} {record.target} {record.version}".strip() or "-"
    referer, agent = record.referer or "-", record.user_agent or "-"
    # An address needs no escaping, but servers other than this package's may give any text.
    client = record.client or "unix:"
    if not _is_plain(client + request + referer + agent):
        request, referer, agent = escaped(request), escaped(referer), escaped(agent)
        client = escaped(client).replace(" ", "\\x20")
    # At the very end, and only if there is something to say, so that programs can still read the lines.
    cost = f" class={record.cost_class} expected={_milliseconds(record.expected)}" if record.cost_class else ""
    outgrown = " outgrown=1" if record.outgrown else ""
    changes = "" if record.changes == "none" else f" changes={as_field(record.changes)}"
    before = f" before={_milliseconds(record.before)}" if record.before >= 0.0 else ""
    trace = f" traceparent={record.traceparent}" if record.traceparent else ""
    upstream = f" upstream={record.upstream}" if record.upstream else ""
    if record.upstream_error:
        upstream += f" upstream_error={record.upstream_error}"
    return (
        f'{client} - - [{stamp}] "{request}" {record.status} {record.sent} "{referer}" "{agent}" '
        f"id={record.id or '-'} lane={record.lane or '-'} wait={_milliseconds(record.wait)} "
        f"run={_milliseconds(record.run)} database={_milliseconds(record.database)} ending={record.ending}"
        f"{cost}{outgrown}{changes}{upstream}{before}{trace}"
    )


def _milliseconds(seconds: float) -> str:
    """With one decimal. Formatting a float takes longer than the rest of a line."""
    tenths = int(10_000 * seconds + 0.5)
    return f"{tenths // 10}.{tenths % 10}"


def fields(record: Record) -> dict[str, object]:
    """A request's fields by their names in docs/operating.md, "Log fields". Any thread."""
    return {
        "request_id": record.id,
        "client": record.client,
        "method": record.method,
        "target": record.target,
        "version": record.version,
        "status": record.status,
        "sent": record.sent,
        "referer": record.referer,
        "user_agent": record.user_agent,
        "lane": record.lane,
        "before_ms": round(1000 * record.before, 1) if record.before >= 0.0 else None,
        "wait_ms": round(1000 * record.wait, 1),
        "run_ms": round(1000 * record.run, 1),
        "database_ms": round(1000 * record.database, 1),
        "total_ms": round(1000 * record.total, 1),
        "statements": record.statements,
        "changes": record.changes,
        "ending": record.ending,
        "class": record.cost_class,
        "expected_ms": round(1000 * record.expected, 1),
        "outgrown": record.outgrown,
        "upstream": record.upstream,
        "upstream_error": record.upstream_error,
        "traceparent": record.traceparent,
    }


def _is_plain(text: str) -> bool:
    return text.isascii() and text.isprintable() and '"' not in text and "\\" not in text
