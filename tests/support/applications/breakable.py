"""An application that does what alerts warn of, as the path says."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import time
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from wsgiref.types import StartResponse, WSGIEnvironment

import MySQLdb
from dbutils.pooled_db import PooledDB

from tests.support.applications.mysql_settings import settings

# Fewer than four connections: none is kept for short requests.
pool = PooledDB(MySQLdb, maxconnections=3, blocking=True, **settings())
# The path of a file with the replica's settings, if there is one.
REPLICA = os.environ.get("REPLICA_SETTINGS")
replica = REPLICA and PooledDB(MySQLdb, maxconnections=2, blocking=True, **json.loads(Path(REPLICA).read_text()))

_kept: list[Any] = []
_files: list[int] = []


def _query(sql: str, after: float = 0.0) -> None:
    with closing(pool.connection()) as connection, closing(connection.cursor()) as cursor:
        time.sleep(after)
        cursor.execute(sql)
        cursor.fetchall()


def _hold_loop(seconds: float) -> None:
    [loop] = [found for found in gc.get_objects() if isinstance(found, asyncio.AbstractEventLoop)]
    loop.call_soon_threadsafe(time.sleep, seconds)


def app(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
    """Answers with the process's id, or with as many bytes as /large asks for."""
    path, text = environ["PATH_INFO"], unquote(environ["QUERY_STRING"])
    body = f"{os.getpid()}".encode()
    if path in ("/sql", "/reports/"):
        _query(text)
    elif path == "/short":
        _query("SELECT 1")
    elif path == "/far/":
        # Long enough to be seen while it runs.
        time.sleep(0.2)
    elif path == "/late":
        _query("SELECT 1", after=0.1)
    elif path == "/error":
        raise LookupError("as the test wants it")
    elif path == "/crash":
        os.abort()
    elif path == "/hold-loop":
        _hold_loop(float(text))
    elif path == "/wait":
        # Whether it is cancelled or not: until this file is there.
        while not os.path.exists(text):
            time.sleep(0.05)
    elif path == "/keep-connections":
        while len(_kept) < int(text):
            _kept.append(pool.connection())
        while len(_kept) > int(text):
            _kept.pop().close()
    elif path == "/keep-files":
        while len(_files) < int(text):
            _files.append(os.open(os.devnull, os.O_RDONLY))
        while len(_files) > int(text):
            os.close(_files.pop())
    elif path == "/large":
        body = bytes(int(text))
    elif path == "/upload":
        environ["wsgi.input"].read()
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [body]
