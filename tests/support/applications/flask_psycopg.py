"""A Flask application with ``psycopg_pool``, and the routes of those in ``benchmarks.stacks``."""

from __future__ import annotations

from flask import Flask
from psycopg_pool import ConnectionPool

from benchmarks import THREADS
from benchmarks.stacks.queries import QUERIES

app = Flask(__name__)
pool = ConnectionPool(min_size=1, max_size=THREADS, open=True)
queries = QUERIES["postgresql"]


def run(sql: str) -> str:
    with pool.connection() as connection:
        return str(connection.execute(sql.encode()).fetchone())


@app.get("/started")
def started() -> str:
    return "started\n"


@app.get("/short")
def short() -> str:
    return run(queries.short)


@app.get("/blocked")
def blocked() -> str:
    return run(queries.blocked)
