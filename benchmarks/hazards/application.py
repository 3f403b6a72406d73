"""The application that all servers serve: a page without a query, queries, uploads, large answers."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing

import MySQLdb
from dbutils.pooled_db import PooledDB
from flask import Flask, Response, request

from benchmarks.hazards import MEGABYTE, THREADS
from myapplication.database import connection_settings

PIECE = bytes(64 * 1024)

app = Flask(__name__)
pool = PooledDB(MySQLdb, maxconnections=THREADS, blocking=True, **connection_settings())


def query(sql: str, parameter: object) -> str:
    with closing(pool.connection()) as connection, closing(connection.cursor()) as cursor:
        cursor.execute(sql, (parameter,))
        return str(cursor.fetchone())


@app.get("/")
def page() -> str:
    return "Hello, world!\n"


@app.get("/started")
def started() -> str:
    """Asked for until the server answers; a path of its own, so that no other has been seen before it is measured."""
    return "started\n"


@app.get("/query")
def slow_query() -> str:
    return query("SELECT SLEEP(%s)", float(request.args["seconds"]))


@app.get("/row")
def row() -> str:
    return query("SELECT word FROM words WHERE id = %s", int(request.args["id"]))


@app.post("/upload")
def upload() -> str:
    received = 0
    while piece := request.stream.read(len(PIECE)):
        received += len(piece)
    return f"{received}\n"


@app.get("/stream")
def stream() -> Response:
    return Response(pieces(int(request.args["megabytes"]) * MEGABYTE), mimetype="application/octet-stream")


def pieces(size: int) -> Iterator[bytes]:
    # The clock is the same in all processes of the machine.
    yield f"first yield at {time.monotonic():.6f}\n".encode()
    for _ in range(0, size, len(PIECE)):
        yield PIECE
