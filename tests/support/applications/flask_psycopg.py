"""A Flask application with ``psycopg_pool``, and the routes of those in ``benchmarks.stacks``."""

from __future__ import annotations

from flask import Flask
from psycopg_pool import ConnectionPool

from benchmarks import THREADS
from benchmarks.stacks.flask_routes import add_routes
from benchmarks.stacks.queries import QUERIES

app = Flask(__name__)
pool = ConnectionPool(min_size=1, max_size=THREADS, open=True)


def run(sql: str) -> str:
    with pool.connection() as connection:
        return str(connection.execute(sql.encode()).fetchone())


add_routes(app, QUERIES["postgresql"], run)
