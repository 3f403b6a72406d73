"""Translates request parameters to an SQL text and the values for its placeholders.

Nothing from a request becomes SQL text: a report's name selects one of the texts in ``reports``, and all other
parameters become values. An empty parameter counts as missing, because HTML forms send empty fields.
"""

from __future__ import annotations

import re
from datetime import date
from typing import Any

from flask import Request
from werkzeug.datastructures import MultiDict

from .reports import REGIONS, REPORTS

FORMATS = ("html", "json", "csv")
# A page with more rows would be useless; a file is not.
MOST_ROWS = {"html": 1_000, "json": 1_000, "csv": 10_000_000}
DEFAULT_ROWS = {"html": 100, "json": 100, "csv": 10_000_000}
FIRST_DATE, LAST_DATE = date(1900, 1, 1), date(2100, 12, 31)

Arguments = MultiDict[str, str]


class ParameterError(Exception):
    """A request parameter is missing or wrong; the message is for the user."""

    def __init__(self, parameter: str, message: str) -> None:
        super().__init__(f"{parameter}: {message}")
        self.parameter = parameter


def process_request_params(request: Request) -> tuple[str, tuple[Any, ...]]:
    """The SQL text of the requested report and the values for its placeholders.

    Raises ParameterError for the first invalid parameter, even if the report does not use it.
    """
    arguments = request.args
    name = one_of(arguments, "report", tuple(REPORTS))
    if not name:
        raise ParameterError("report", f"is missing; choose one of {', '.join(REPORTS)}.")
    report = REPORTS[name]
    from_date = day(arguments, "from", FIRST_DATE)
    to_date = day(arguments, "to", LAST_DATE)
    if from_date > to_date:
        raise ParameterError("from", f"{from_date} is after the end of the period, {to_date}.")
    result_format = requested_format(request)
    values: dict[str, Any] = {
        "from": from_date,
        "to": to_date,
        "region": one_of(arguments, "region", REGIONS),
        "limit": whole_number(
            arguments, "limit", highest=MOST_ROWS[result_format], default=DEFAULT_ROWS[result_format]
        ),
        "customer": whole_number(arguments, "customer", highest=4_294_967_295),
        "seconds": seconds(arguments),
    }
    for parameter in report.parameters:
        if values[parameter] is None:
            raise ParameterError(parameter, f"is missing; the report {name} needs it.")
    return report.sql, tuple(values[parameter] for parameter in report.parameters)


def requested_format(request: Request) -> str:
    """html, json or csv: by the parameter ``format``, otherwise by the request's Accept header."""
    return one_of(request.args, "format", FORMATS) or accepted_format(request)


def accepted_format(request: Request) -> str:
    """html or json, by the request's Accept header."""
    accepted = request.accept_mimetypes.best_match(("text/html", "application/json"))
    return "json" if accepted == "application/json" else "html"


def one_of(arguments: Arguments, name: str, choices: tuple[str, ...]) -> str:
    text = arguments.get(name, "")
    if text and text not in choices:
        raise ParameterError(name, f"{text!r} is unknown; choose one of {', '.join(choices)}.")
    return text


def day(arguments: Arguments, name: str, default: date) -> date:
    text = arguments.get(name, "")
    if not text:
        return default
    try:
        # The pattern excludes other forms that fromisoformat accepts, such as 2024-W10-1.
        found = date.fromisoformat(text) if re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", text) else None
    except ValueError:
        found = None
    if found is None:
        raise ParameterError(name, f"{text!r} is not a date; write it like 2025-03-31.")
    if not FIRST_DATE <= found <= LAST_DATE:
        raise ParameterError(name, f"{text} is out of range; choose a date from {FIRST_DATE} to {LAST_DATE}.")
    return found


def whole_number(arguments: Arguments, name: str, *, highest: int, default: int | None = None) -> int | None:
    text = arguments.get(name, "")
    if not text:
        return default
    if not re.fullmatch(r"[0-9]{1,12}", text) or not 1 <= int(text) <= highest:
        raise ParameterError(name, f"{text!r} is not a whole number from 1 to {highest:,}.")
    return int(text)


def seconds(arguments: Arguments) -> float | None:
    text = arguments.get("seconds", "")
    if not text:
        return None
    if not re.fullmatch(r"[0-9]{1,2}(\.[0-9]{1,6})?", text) or float(text) > 60:
        raise ParameterError("seconds", f"{text!r} is not a number from 0 to 60.")
    return float(text)
