"""PostgreSQL queries that stop when their client leaves, on connections from a pool and on others.

libpq's variables say where the database is: ``PGHOST=/run/postgresql python docs/examples/postgresql.py 8000``. Open
http://127.0.0.1:8000/pool/60 and close it again: the query disappears from ``pg_stat_activity``.
"""

from __future__ import annotations

import sys
from contextlib import closing

import psycopg
from dbutils.pooled_db import PooledDB
from flask import Flask

from threadbridge import current, serve

application = Flask(__name__)
pool = PooledDB(psycopg, maxconnections=10)


@application.get("/pool/<int:seconds>")
def query_of_the_pool(seconds: int) -> str:
    """Nothing to do: the bridge knows which of the pool's connections a request uses."""
    with closing(pool.connection()) as connection, closing(connection.cursor()) as cursor:
        cursor.execute("SELECT pg_sleep(%s)", (seconds,))
    return f"slept for {seconds} s\n"


@application.get("/own/<int:seconds>")
def query_on_a_connection_of_its_own(seconds: int) -> str:
    """For other work, register a function that stops it, and take the function back afterwards."""
    with psycopg.connect() as connection:
        take_back = current().on_cancel(connection.cancel)
        try:
            connection.execute("SELECT pg_sleep(%s)", (seconds,))
        finally:
            take_back()
    return f"slept for {seconds} s\n"


if __name__ == "__main__":
    sys.exit(serve(application, pool=pool, port=int(sys.argv[1])))
