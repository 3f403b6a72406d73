"""What tests of cancelled requests need: an application, its requests, and a look at what is left of them."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from contextlib import closing
from typing import Any
from wsgiref.types import StartResponse, WSGIEnvironment

import pytest

from tests.support.databases import Witness
from tests.support.inprocess import wait_until

# These wait for a lock that the fixture ``witness`` holds, and are stopped at once; MariaDB takes 2 s for one KILL of a
# SLEEP in about 25. GET_LOCK itself raises no error when it is stopped, but the next row does.
WAIT = "SELECT GET_LOCK('held', 20) FROM seq_1_to_2"
COUNTED_WAIT = "SELECT NEXT VALUE FOR executions, GET_LOCK('held', 20) FROM seq_1_to_2"
# What `Witness.wait_for` finds them by.
WAITING = "GET_LOCK('held'"


class Application:
    """Calls a function for each request; its return value is the response. Keeps what the functions raised."""

    def __init__(self, function: Callable[[WSGIEnvironment], object]) -> None:
        self.errors: list[Exception] = []
        self.ended = 0
        self._function = function

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        try:
            body = str(self._function(environ)).encode()
        except Exception as error:
            # Without the traceback, which would keep the connection from coming back.
            self.errors.append(error.with_traceback(None))
            raise
        finally:
            self.ended += 1
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [body]


def get(path: str = "/", method: str = "GET") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode()


def query(pool: Any, sql: str) -> Any:
    with closing(pool.connection()) as connection, closing(connection.cursor()) as cursor:
        cursor.execute(sql)
        return cursor.fetchone()


def kept_controls(guard: Any) -> list[Any]:
    """The guard's control connections that are idle now: the objects that know them."""
    kept = list(guard._database.controls._servers.values())
    return [each._idle for each in kept if each._idle is not None]


def calls_of(stopper: Any) -> list[Any]:
    """The bounded calls to each server."""
    return [calls for by_server in list(stopper._calls.values()) for calls in list(by_server.values())]


def assert_all_is_well(pool: Any, witness: Witness) -> None:
    """Nothing runs in the database, and all connections of the pool are there and in order."""
    wait_until(lambda: pool._connections == 0, "all connections are back")
    wait_until(lambda: witness.running == [], "nothing runs")
    with contextlib.ExitStack() as stack:
        for _ in range(pool._maxconnections):
            connection = stack.enter_context(closing(pool.connection()))
            cursor = stack.enter_context(closing(connection.cursor()))
            cursor.execute("SELECT 42")
            assert cursor.fetchone() == (42,)
    assert pool._connections == 0


def own_messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The warnings and errors that the package has logged."""
    return [
        record.getMessage()
        for record in caplog.records
        if record.name == "threadbridge" and record.levelno >= logging.WARNING
    ]
