"""The application that all servers serve: pages with and without a query, uploads, large answers."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from itertools import repeat

import MySQLdb
from dbutils.pooled_db import PooledDB
from flask import Flask, Response, render_template, request

from benchmarks import MEGABYTE, THREADS
from myapplication.database import connection_settings

PIECE = bytes(64 * 1024)
# They make a page of 16 kB.
ORDERS = [(number, f"Customer {number % 37}", f"Product {number % 11} & more", number * 1.25) for number in range(126)]

app = Flask(__name__)
pool = PooledDB(MySQLdb, maxconnections=THREADS, blocking=True, **connection_settings())


def query(sql: str, parameter: object) -> str:
    with closing(pool.connection()) as connection, closing(connection.cursor()) as cursor:
        cursor.execute(sql, (parameter,))
        return str(cursor.fetchone())


@app.get("/")
def hello() -> str:
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


@app.get("/compute")
def compute() -> str:
    """What an application's own Python is made of: calls, objects, strings and numbers; nothing is shared."""
    found: dict[str, int] = {}
    for number in range(int(request.args["steps"])):
        name = f"item {number % 100}"
        found[name] = found.get(name, 0) + len(name) * number % 7
    return f"{sum(sorted(found.values()))}\n"


@app.get("/page")
def page() -> str:
    return render_template("orders.html", title="Orders", orders=ORDERS)


@app.post("/upload")
def upload() -> str:
    received = 0
    while piece := request.stream.read(len(PIECE)):
        received += len(piece)
    return f"{received}\n"


@app.get("/download")
def download() -> Response:
    """A body whose length is known, made piece by piece."""
    size = int(request.args["megabytes"]) * MEGABYTE
    return Response(
        repeat(PIECE, size // len(PIECE)), mimetype="application/octet-stream", headers={"Content-Length": str(size)}
    )


@app.get("/stream")
def stream() -> Response:
    """A body whose length nobody knows before its end."""
    return Response(pieces(int(request.args["megabytes"]) * MEGABYTE), mimetype="application/octet-stream")


def pieces(size: int) -> Iterator[bytes]:
    # The clock is the same in all processes of the machine.
    yield f"first yield at {time.monotonic():.6f}\n".encode()
    for _ in range(0, size, len(PIECE)):
        yield PIECE
