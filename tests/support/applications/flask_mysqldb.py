"""A Flask application that connects for each request, and the routes of those in ``benchmarks.stacks``."""

from __future__ import annotations

import os
from contextlib import closing

from flask import Flask

from benchmarks.database import connect
from benchmarks.stacks.queries import QUERIES

app = Flask(__name__)
queries = QUERIES["mysql"]


def run(sql: str) -> str:
    with closing(connect(os.environ)) as connection, closing(connection.cursor()) as cursor:
        cursor.execute(sql)
        return str(cursor.fetchone())


@app.get("/started")
def started() -> str:
    return "started\n"


@app.get("/short")
def short() -> str:
    return run(queries.short)


@app.get("/blocked")
def blocked() -> str:
    return run(queries.blocked)
