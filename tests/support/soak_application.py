"""What the soak test serves: every kind of request, on a pool of five connections."""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs
from wsgiref.types import StartResponse, WSGIEnvironment

import MySQLdb
from dbutils.pooled_db import PooledDB

PLAIN = [("Content-Type", "text/plain")]
PIECE = bytes(range(256)) * 256

pool = PooledDB(
    MySQLdb,
    maxconnections=5,
    unix_socket=os.environ["MYSQL_UNIX_SOCKET"],
    user=os.environ["MYSQL_USER"],
    password=Path(os.environ["MYSQL_PASSWORD_FILE"]).read_text(),
    database=os.environ["MYSQL_DATABASE"],
)


def query(seconds: float) -> bytes:
    connection = pool.dedicated_connection()
    try:
        cursor = connection.cursor()
        cursor.execute("SELECT SLEEP(%s), CONNECTION_ID()", (seconds,))
        return repr(cursor.fetchall()).encode()
    finally:
        connection.close()


def stream(count: int, pause: float) -> Iterable[bytes]:
    for _ in range(count):
        time.sleep(pause)
        yield PIECE


def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    parameters = parse_qs(environ["QUERY_STRING"])
    number = float(parameters.get("n", ["0"])[0])
    path = environ["PATH_INFO"]
    if path == "/raise":
        raise LookupError("as asked")
    body: Any = [b"fast"]
    if path == "/query":
        body = [query(number)]
    elif path == "/stream":
        body = stream(int(number), 0)
    elif path == "/drip":
        body = stream(5, number)
    elif path == "/upload":
        seen = hashlib.sha256()
        while piece := environ["wsgi.input"].read(65536):
            seen.update(piece)
        body = [seen.hexdigest().encode()]
    elif path == "/file":
        file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by the server, as PEP 3333 has it
        file.write(PIECE * int(number))
        file.seek(0)
        body = environ["wsgi.file_wrapper"](file)
    start_response("200 OK", PLAIN)
    return body  # type: ignore[no-any-return]
