"""Lines of the access log in the operator's own format, a template with gunicorn's atoms.

https://gunicorn.org/reference/settings/#access_log_format
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Callable, Mapping
from typing import Any

from threadbridge.crossing.exchange import Exchange
from threadbridge.telemetry.access_log import escaped, fields
from threadbridge.telemetry.record import Record

Value = str | int | float
Formatted = Callable[[Record, str], Value]

# A conversion of Python's %-formatting, or a % that is none.
_CONVERSION = re.compile(r"%(?:%|\(([^()]*)\)[-#0 +]*[0-9]*(?:\.[0-9]+)?[a-zA-Z])?")
_VARIABLE = re.compile(r"\{([^{}]+)\}([ioe])").fullmatch

# gunicorn's, as functions of the record and the time of the line.
ATOMS: Mapping[str, Formatted] = {
    "h": lambda record, stamp: record.client or "-",
    "l": lambda record, stamp: "-",
    "u": lambda record, stamp: (record.kept or {}).get("u", "-"),
    "t": lambda record, stamp: f"[{stamp}]",
    "r": lambda record, stamp: f"{record.method} {record.target} {record.version}".strip() or "-",
    "m": lambda record, stamp: record.method or "-",
    "U": lambda record, stamp: record.target.partition("?")[0] or "-",
    "q": lambda record, stamp: record.target.partition("?")[2],
    "H": lambda record, stamp: record.version or "-",
    "s": lambda record, stamp: record.status,
    "B": lambda record, stamp: record.sent,
    "b": lambda record, stamp: record.sent or "-",
    "f": lambda record, stamp: record.referer or "-",
    "a": lambda record, stamp: record.user_agent or "-",
    "T": lambda record, stamp: int(record.total),
    "M": lambda record, stamp: int(1000 * record.total),
    "D": lambda record, stamp: int(1_000_000 * record.total),
    "L": lambda record, stamp: f"{record.total:.6f}",
    "p": lambda record, stamp: f"<{os.getpid()}>",
}
# This server's own, by the names that they have in JSON.
FIELDS = tuple(fields(Record()))


class AccessFormat:
    """A template such as ``%(h)s "%(r)s" %(s)s %({x-forwarded-for}i)s``.

    Clients write much of what stands in a line: quotes, backslashes and all but printable ASCII are escaped, so that
    nobody can end a line or a quoted value. Raises ``ValueError`` if the template cannot be used.
    """

    def __init__(self, template: str) -> None:
        self._template = template
        # By the name in the template.
        self._values: dict[str, Formatted] = {}
        self._uses_fields = self._uses_user = False
        # Names in the template with what they stand for: header fields by their names in lower case.
        self._sent: dict[str, str] = {}
        self._received: dict[str, str] = {}
        self._variables: dict[str, str] = {}
        for conversion in _CONVERSION.finditer(template):
            if conversion[0] == "%":
                raise ValueError(
                    f"access_log_format={template!r}: the % at {template[conversion.start() :][:20]!r} begins no atom; "
                    "expected %(NAME)s, or %% for a percent sign"
                )
            if conversion[1] is not None:
                self._add(conversion[1])
        try:
            self.line(Record(), "")
        except (TypeError, ValueError) as error:
            raise ValueError(f"access_log_format={template!r}: {error}") from None

    def _add(self, name: str) -> None:
        variable = _VARIABLE(name)
        if variable is not None:
            kind = {"i": self._received, "o": self._sent, "e": self._variables}[variable[2]]
            kind[name] = variable[1] if variable[2] == "e" else variable[1].lower()
        elif name in ATOMS:
            self._values[name] = ATOMS[name]
            self._uses_user |= name == "u"
        elif name in FIELDS:
            self._uses_fields = True
        else:
            raise ValueError(
                f"access_log_format: there is no %({name})s; there are {', '.join([*ATOMS, *FIELDS])}, and {{NAME}}i "
                "for a request header, {NAME}o for a response header and {NAME}e for a variable of the environ"
            )

    @property
    def needs_environ(self) -> bool:
        """Whether it shows variables of the environ."""
        return bool(self._variables)

    def keep(self, exchange: Exchange) -> Mapping[str, Value]:
        """Return the values that are not in the record, by their names in the template. Loop side."""
        kept: dict[str, Value] = {}
        for name, field in self._received.items():
            if field in exchange.headers:
                kept[name] = exchange.headers[field]
        if self._sent:
            sent = _parsed(exchange.head_lines)
            kept.update((name, sent[field]) for name, field in self._sent.items() if field in sent)
        environ = exchange.environ or {}
        for name, variable in self._variables.items():
            value: Any = environ.get(variable)
            # No application code runs here, on the loop: not even that of a class derived from these.
            if type(value) in (str, int, float, bool):
                kept[name] = value
        if self._uses_user:
            kept["u"] = _user(exchange.headers.get("Authorization", ""))
        return kept

    def line(self, record: Record, stamp: str) -> str:
        """Return the line of a request; ``stamp`` is the time of its end. Any thread."""
        kept = record.kept or {}
        values: dict[str, object] = {name: value(record, stamp) for name, value in self._values.items()}
        for names in (self._received, self._sent, self._variables):
            values.update((name, kept.get(name, "-")) for name in names)
        if self._uses_fields:
            # "-" for what is empty or unknown, as in the other atoms.
            values.update((name, "-" if value in ("", None) else value) for name, value in fields(record).items())
        safe = {name: escaped(value) if isinstance(value, str) else value for name, value in values.items()}
        return self._template % safe


def _parsed(lines: bytes) -> dict[str, str]:
    """The fields of a response's head by their names in lower case."""
    found: dict[str, str] = {}
    for line in lines.decode("latin-1").split("\r\n")[1:]:
        name, _, value = line.partition(": ")
        name = name.lower()
        found[name] = f"{found[name]}, {value}" if name in found else value
    return found


def _user(authorization: str) -> str:
    """The user's name in HTTP Basic authentication (RFC 7617); "-" if there is none."""
    scheme, _, credentials = authorization.partition(" ")
    if scheme.lower() != "basic":
        return "-"
    try:
        return base64.b64decode(credentials.strip()).partition(b":")[0].decode("latin-1") or "-"
    except ValueError:
        return "-"
