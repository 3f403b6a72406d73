"""The application of the hosts: short queries and long ones. Its database, and how slow that is, depend on files."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path
from wsgiref.types import StartResponse, WSGIEnvironment

import MySQLdb
from dbutils.pooled_db import PooledDB

# While a file "slow" is in the host's directory, short queries take four times as long.
SHORT, FACTOR, LONG = 0.02, 4, 3.0
DIRECTORY = Path(os.environ["HOST_DIRECTORY"], os.environ["HOST_NAME"])

pool = PooledDB(
    MySQLdb,
    maxconnections=10,
    unix_socket=str(DIRECTORY / "database"),
    user=os.environ["HOST_NAME"],
    database=os.environ["MYSQL_DATABASE"],
)


def app(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
    """Answer /short and /long."""
    short = SHORT * FACTOR if (DIRECTORY / "slow").exists() else SHORT
    seconds = LONG if environ["PATH_INFO"] == "/long" else short
    with closing(pool.connection()) as connection, closing(connection.cursor()) as cursor:
        cursor.execute("SELECT SLEEP(%s)", (seconds,))
        cursor.fetchall()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "2")])
    return [b"ok"]
