"""The sample application with a few routes more, whose queries take as long as the table ``kinds`` says."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from datetime import date

from flask import request

from benchmarks.database import connect
from myapplication import app, db

SHORT, LONG, CHANGING = "short", "long", "changing"
SHORT_SECONDS = 0.002
# A period of more days is a long query.
SHORT_DAYS = 31


def fill(variables: Mapping[str, str], long: float) -> None:
    """Make the table; the changing queries are short at first."""
    with closing(connect(variables)) as connection, closing(connection.cursor()) as cursor:
        cursor.execute("CREATE OR REPLACE TABLE kinds (name VARCHAR(10) PRIMARY KEY, seconds DOUBLE NOT NULL)")
        rows = [(SHORT, SHORT_SECONDS), (LONG, long), (CHANGING, SHORT_SECONDS)]
        cursor.executemany("INSERT INTO kinds VALUES (%s, %s)", rows)


def change(variables: Mapping[str, str], seconds: float) -> None:
    """Let the changing queries take so long from now on."""
    with closing(connect(variables)) as connection, closing(connection.cursor()) as cursor:
        cursor.execute("UPDATE kinds SET seconds = %s WHERE name = %s", (seconds, CHANGING))


def run(kind: str) -> str:
    # The sleep is in the database: the machine's processors do not decide how many run at once.
    return str(db.query("SELECT SLEEP(seconds) FROM kinds WHERE name = %s", (kind,)).rows)


@app.get("/started")
def started() -> str:
    """Asked for until the server answers."""
    return "started\n"


@app.get("/short")
def short() -> str:
    return run(SHORT)


@app.get("/long")
def long() -> str:
    return run(LONG)


@app.get("/named")
def named() -> str:
    """The parameter ``name`` tells the kind; the others make no difference."""
    return run(request.args["name"])


@app.get("/period")
def period() -> str:
    """The time between ``from`` and ``to`` tells the kind."""
    days = date.fromisoformat(request.args["to"]) - date.fromisoformat(request.args["from"])
    return run(LONG if days.days > SHORT_DAYS else SHORT)
