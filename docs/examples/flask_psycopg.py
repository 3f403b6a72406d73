"""A Flask application with ``psycopg_pool``: queries stop when their client leaves, and such requests commit nothing.

libpq's variables say where the database is. In this directory, serve it with
``python -m threadbridge flask_psycopg:application``. Open http://127.0.0.1:8000/orders/60 and close it again: the query
disappears from ``pg_stat_activity``, and no order is added. Nothing here is written for threadbridge.
"""

from __future__ import annotations

from flask import Flask
from psycopg_pool import ConnectionPool

application = Flask(__name__)
pool = ConnectionPool(min_size=1, max_size=10, open=True)

with pool.connection() as connection:
    connection.execute("CREATE TABLE IF NOT EXISTS orders (id serial PRIMARY KEY, item text NOT NULL)")


@application.get("/orders")
def orders() -> list[str]:
    """All orders."""
    with pool.connection() as connection:
        return [item for (item,) in connection.execute("SELECT item FROM orders ORDER BY id")]


@application.get("/orders/<int:seconds>")
def slow_order(seconds: int) -> str:
    """Order something, and take a while; the block commits at its end."""
    with pool.connection() as connection:
        connection.execute("INSERT INTO orders (item) VALUES (%s)", ["coffee"])
        connection.execute("SELECT pg_sleep(%s)", [seconds])
    return "ordered\n"
