"""The access log: a line for each request, in the combined format of Apache and nginx, and a few fields more."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from datetime import UTC, datetime

from tornado.log import access_log

from threadbridge.sql.statements import as_field
from threadbridge.telemetry.record import Record

# What `time.strftime` makes of %b where the locale is English.
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


class AccessLines:
    """The message of a log record that stands for several requests; as text it is their lines. Any thread."""

    def __init__(self, records: Sequence[Record]) -> None:
        self.records = records
        # Kept, for handlers that look at the size of their file ask twice.
        self._text = ""
        self._json = ""

    def __str__(self) -> str:
        if not self._text:
            self._text = _lines(self.records)
        return self._text

    @property
    def json(self) -> str:
        """The same for programs: an object a line."""
        if not self._json:
            self._json = "\n".join([json.dumps(_fields(record)) for record in self.records])
        return self._json


def write(records: Sequence[Record]) -> None:
    """Log these requests, in one record of the logger ``tornado.access``. A reader of the telemetry. Loop side."""
    access_log.info(AccessLines(records))


def escaped(text: str) -> str:
    """The text as nginx logs it: quotes, backslashes and all but printable ASCII as ``\\xHH``. Any thread."""
    # A request's head is decoded as latin-1, so that each character is a byte.
    return "".join(
        character if _is_plain(character) else f"\\x{byte:02X}"
        for character in text
        for byte in character.encode("latin-1", "backslashreplace")
    )


def iso_time(seconds: float) -> str:
    """A time since 1970 as ISO 8601 and RFC 3339 have it, in UTC, to the millisecond. Any thread."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


def _lines(records: Sequence[Record]) -> str:
    lines = []
    second, stamp = 0, ""
    for record in records:
        ended_at = int(record.started_at + record.total)
        if ended_at != second:
            second, stamp = ended_at, _stamp(ended_at)
        lines.append(_line(record, stamp))
    return "\n".join(lines)


def _line(record: Record, stamp: str) -> str:
    request = f"{record.method} {record.target} {record.version}".strip() or "-"
    referer, agent = record.referer or "-", record.user_agent or "-"
    # An address as it is; other servers may give another text.
    client = record.client or "unix:"
    if not _is_plain(client + request + referer + agent):
        request, referer, agent = escaped(request), escaped(referer), escaped(agent)
        client = escaped(client).replace(" ", "\\x20")
    # At the very end, and only where there is something to tell: programs that read the lines go on doing so.
    changes = "" if record.changes == "none" else f" changes={as_field(record.changes)}"
    return (
        f'{client} - - [{stamp}] "{request}" {record.status} {record.sent} "{referer}" "{agent}" '
        f"id={record.id or '-'} lane={record.lane or '-'} wait={_milliseconds(record.wait)} "
        f"run={_milliseconds(record.run)} database={_milliseconds(record.database)} ending={record.ending}{changes}"
    )


def _milliseconds(seconds: float) -> str:
    """With a tenth; what formats floats takes longer than all the rest of a line."""
    tenths = int(10_000 * seconds + 0.5)
    return f"{tenths // 10}.{tenths % 10}"


def _fields(record: Record) -> dict[str, object]:
    return {
        "time": iso_time(record.started_at + record.total),
        "level": "info",
        "logger": access_log.name,
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
        "wait_ms": round(1000 * record.wait, 1),
        "run_ms": round(1000 * record.run, 1),
        "database_ms": round(1000 * record.database, 1),
        "total_ms": round(1000 * record.total, 1),
        "statements": record.statements,
        "changes": record.changes,
        "ending": record.ending,
    }


def _is_plain(text: str) -> bool:
    return text.isascii() and text.isprintable() and '"' not in text and "\\" not in text


def _stamp(seconds: int) -> str:
    moment = time.localtime(seconds)
    return time.strftime(f"%d/{MONTHS[moment.tm_mon - 1]}/%Y:%H:%M:%S %z", moment)
