"""Queries on PostgreSQL that stop when their client leaves: from a pool of psycopg connections, and beside it.

libpq's variables say where the database is: ``PGHOST=/run/postgresql python docs/examples/postgresql.py 8000``. Ask for
http://127.0.0.1:8000/pool/60 and leave it again: the query is gone from ``pg_stat_activity``.
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
    """The bridge knows which connections of the pool a request has: there is nothing to do."""
    with closing(pool.connection()) as connection, closing(connection.cursor()) as cursor:
        cursor.execute("SELECT pg_sleep(%s)", (seconds,))
    return f"slept for {seconds} s\n"


@application.get("/own/<int:seconds>")
def query_on_a_connection_of_its_own(seconds: int) -> str:
    """Of anything else it has to be told how to stop it, as long as that is wanted."""
    with psycopg.connect() as connection:
        take_back = current().on_cancel(connection.cancel)
        try:
            connection.execute("SELECT pg_sleep(%s)", (seconds,))
        finally:
            take_back()
    return f"slept for {seconds} s\n"


if __name__ == "__main__":
    sys.exit(serve(application, pool=pool, port=int(sys.argv[1])))
