"""The pages: the form, and a report's result as a table, as JSON or as a CSV file."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Iterator
from datetime import date, datetime
from decimal import Decimal
from itertools import chain
from typing import Any

import MySQLdb
from dbutils.pooled_db import TooManyConnections
from flask import Flask, Response, jsonify, render_template, request
from flask.json.provider import DefaultJSONProvider

from .database import Result, db
from .parameters import MOST_ROWS, ParameterError, accepted_format, process_request_params, requested_format
from .reports import REGIONS, REPORTS

# The database cannot be reached, has no connection left or is shutting down. The query is not at fault, and there may
# be many such errors at once, so they are logged without a traceback.
OUTAGES = {2002, 2003, 2005, 2006, 2013, 1040, 1203, 1053, 1927}
# The query was stopped, for example because the client has left, or has reached a time limit.
STOPS = {1317, 1969, 3024}

FIELDS_AT_FIRST = {
    "report": "products",
    "from": "2025-01-01",
    "to": "2025-12-31",
    "region": "",
    "customer": "1",
    "seconds": "5",
    "limit": "100",
}

# Everything that the page needs comes from this application; the page contains no inline scripts.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)


class JSONProvider(DefaultJSONProvider):
    """JSON in which decimals are numbers, and dates have the form 2025-03-31."""

    @staticmethod
    def default(value: Any) -> Any:
        if isinstance(value, Decimal):
            return int(value) if value.as_tuple().exponent == 0 else float(value)
        if isinstance(value, date):
            return value.isoformat()
        return DefaultJSONProvider.default(value)


app = Flask(__name__)
app.json = JSONProvider(app)


@app.get("/")
def index() -> str:
    return page(FIELDS_AT_FIRST)


@app.get("/query/")
def query() -> Response | str:
    sql, params = process_request_params(request)
    result_format = requested_format(request)
    if result_format == "csv":
        return csv_file(sql, params)
    started = time.perf_counter()
    result = db.query(sql, params)
    elapsed_ms = round((time.perf_counter() - started) * 1000, 1)
    if result_format == "json":
        return jsonify(
            report=request.args["report"],
            columns=result.columns,
            rows=result.rows,
            row_count=len(result.rows),
            elapsed_ms=elapsed_ms,
        )
    return page(chosen(), result=result, elapsed_ms=elapsed_ms)


def csv_file(sql: str, params: tuple[Any, ...]) -> Response:
    rows = db.stream(sql, params)
    # The first step runs the query: if it fails, an error page can still be sent. And closing a generator has an
    # effect only after its first step.
    first = next(rows)
    response = Response(csv_lines(chain([first], rows)), mimetype="text/csv")
    response.call_on_close(rows.close)
    response.headers.set("Content-Disposition", "attachment", filename=f"{request.args['report']}.csv")
    return response


def csv_lines(rows: Iterator[tuple[Any, ...]]) -> Iterator[str]:
    line = io.StringIO()
    writer = csv.writer(line)
    for row in rows:
        writer.writerow(row)
        yield line.getvalue()
        line.seek(0)
        line.truncate()


def chosen() -> dict[str, str]:
    """The fields as given in this request, with defaults for those that must not be empty if a report needs them."""
    given = {name: request.args.get(name, "") for name in FIELDS_AT_FIRST}
    for name in ("customer", "seconds"):
        given[name] = given[name] or FIELDS_AT_FIRST[name]
    return given


def page(
    fields: dict[str, str],
    *,
    result: Result | None = None,
    elapsed_ms: float = 0,
    error: str = "",
    wrong: str = "",
) -> str:
    """The page, filled in with ``fields``, with a result or an error; ``wrong`` names the invalid field."""
    return render_template(
        "page.html",
        reports=REPORTS,
        regions=REGIONS,
        most_rows=MOST_ROWS["html"],
        fields=fields,
        result=result,
        elapsed_ms=elapsed_ms,
        error=error,
        wrong=wrong,
    )


@app.template_filter()
def shown(value: Any) -> str:
    """Format a cell's value for the page; whole numbers get no separators, because they may be order numbers."""
    if value is None:
        return ""
    if isinstance(value, Decimal):
        return f"{value:,}"
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M}"
    return str(value)


@app.template_filter()
def duration(milliseconds: float) -> str:
    return f"{milliseconds:.0f} ms" if milliseconds < 1000 else f"{milliseconds / 1000:.2f} s"


@app.template_test()
def numeric(value: Any) -> bool:
    return isinstance(value, int | float | Decimal)


@app.errorhandler(ParameterError)
def wrong_parameter(error: ParameterError) -> Response:
    return error_answer(400, str(error), wrong=error.parameter)


@app.errorhandler(TooManyConnections)
def too_many_connections(error: TooManyConnections) -> Response:
    app.logger.error("All connections of the pool are in use: %s", request.full_path)
    return error_answer(503, "Too many searches are running. Please try again in a moment.")


@app.errorhandler(MySQLdb.Error)
def database_error(error: MySQLdb.Error) -> Response:
    number = error.args[0] if error.args else None
    if number in STOPS:
        app.logger.info("The query was stopped: %s: %s", request.full_path, error)
        return error_answer(503, "The search was stopped before it was complete. Please try again.")
    if number in OUTAGES:
        app.logger.error("The database did not answer: %s: %s", request.full_path, error)
    else:
        app.logger.error("The database failed: %s", request.full_path, exc_info=error)
    if isinstance(error, MySQLdb.OperationalError):
        return error_answer(503, "The database cannot answer at present. Please try again in a moment.")
    return error_answer(500, "The database could not run this report. The cause is in the application's log.")


def error_answer(status: int, message: str, *, wrong: str = "") -> Response:
    try:
        answer_format = requested_format(request)
    except ParameterError:
        answer_format = accepted_format(request)
    if answer_format == "json":
        response = jsonify(error={"message": message, "parameter": wrong or None})
    else:
        response = app.make_response(page(chosen(), error=message, wrong=wrong))
    response.status_code = status
    return response


@app.after_request
def add_headers(response: Response) -> Response:
    response.headers["Content-Security-Policy"] = CONTENT_SECURITY_POLICY
    response.headers["X-Content-Type-Options"] = "nosniff"
    if request.endpoint == "query":
        response.headers["Cache-Control"] = "no-store"
        response.vary.add("Accept")
    return response
