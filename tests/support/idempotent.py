"""An application with an `Idempotency-Key` on its paths, for tests: it counts what it runs."""

from __future__ import annotations

import http.client
import itertools
import json
import sqlite3
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from wsgiref.types import StartResponse, WSGIEnvironment

from tests.support.inprocess import BridgeThread
from threadbridge import current
from threadbridge.worker.idempotency_store import Answer, FirstRequest, IdempotencyStore


class Application:
    """Counts what it runs; does what the path says."""

    def __init__(self) -> None:
        self.runs = 0
        self.closed = 0
        self.bodies: list[bytes] = []
        self.entered = threading.Semaphore(0)
        self.go_on = threading.Event()
        self._lock = threading.Lock()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        with self._lock:
            self.runs += 1
            run = self.runs
        self.bodies.append(environ["wsgi.input"].read())
        path = environ["PATH_INFO"]
        if path == "/pay/waits":
            self.entered.release()
            assert self.go_on.wait(30)
        if path == "/pay/cancellable":
            current().on_cancel(self.go_on.set)
            self.entered.release()
            assert self.go_on.wait(30)
            raise TimeoutError("stopped")
        if path == "/pay/cancellable-flask":
            current().on_cancel(self.go_on.set)
            self.entered.release()
            assert self.go_on.wait(30)
            start_response("500 Internal Server Error", [])
            return [b"stopped"]
        if path == "/pay/fails":
            raise LookupError("as asked")
        if path == "/pay/later" and run == 1:
            start_response("503 Service Unavailable", [("Retry-After", "1")])
            return [b"later"]
        if path == "/pay/writes":
            start_response("200 OK", [])(b"written, ")
            return iter([b"and iterated"])
        if path == "/pay/empty":
            start_response("204 No Content", [("X-Run", str(run))])
            return []
        if path == "/pay/large":
            start_response("200 OK", [("Content-Type", "text/plain")])
            return Closing([b"x" * 300_000] * 5, self)
        if path == "/pay/endless":
            start_response("200 OK", [("Content-Type", "text/plain")])
            return Closing(itertools.repeat(b"x" * 300_000), self)
        if path in ("/pay/largely-written", "/pay/only-written"):
            write = start_response("200 OK", [])
            for _ in range(5):
                write(b"x" * 300_000)
            return [b"."] if path == "/pay/largely-written" else []
        if path in ("/pay/half", "/pay/large-half"):
            return half_of_a_page(b"x" * (10 if path == "/pay/half" else 1_500_000), start_response)
        start_response("201 Created", [("Content-Type", "text/plain"), ("X-Run", str(run)), ("Set-Cookie", "a=b")])
        return Closing([b"run ", str(run).encode()], self)


def half_of_a_page(half: bytes, start_response: StartResponse) -> Iterator[bytes]:
    """Begins, as an application may, with an empty chunk, and shows an error page after an exception."""
    yield b""
    start_response("200 OK", [])
    yield half
    try:
        raise LookupError("in the middle")
    except LookupError:
        # By its name, which typeshed does not allow and PEP 3333 does.
        start_response("500 Internal Server Error", [("X-Page", "error")], exc_info=sys.exc_info())  # type: ignore[call-arg]
    yield b"error page"


class Closing:
    """A body that counts how often it is closed, also as its own iterator."""

    def __init__(self, chunks: Iterable[bytes], application: Application) -> None:
        self._chunks = iter(chunks)
        self._application = application

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        return next(self._chunks)

    def close(self) -> None:
        self._application.closed += 1


def serve(application: Application, store: Path, **parameters: Any) -> BridgeThread:
    """A server of the application with keys on its paths that begin with /pay."""
    common: dict[str, Any] = {"threads": 4, "idempotent_paths": ["/pay*"], "idempotency_store": str(store)}
    return BridgeThread(application, **(common | parameters))


def post(
    server: BridgeThread,
    key: str | None = '"k"',
    path: str = "/pay",
    body: bytes = b"1",
    method: str = "POST",
    **fields: str,
) -> tuple[http.client.HTTPResponse, bytes]:
    headers = {name.replace("_", "-"): value for name, value in fields.items()}
    if key is not None:
        headers["Idempotency-Key"] = key
    return server.request(method, path, body, headers)


def detail(body: bytes) -> str:
    text: str = json.loads(body)["detail"]
    return text


def is_replayed(response: http.client.HTTPResponse) -> bool:
    return response.headers.get("Idempotency-Replayed") == "true"


@contextmanager
def opened(path: Path, *, age: float = 60, size: int = 1024**2) -> Iterator[IdempotencyStore]:
    store = IdempotencyStore(str(path), age=age, size=size)
    yield store
    store.close()


def rows(path: Path, sql: str, *values: object) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(path)) as connection, connection:
        return connection.execute(sql, values).fetchall()


def begin(store: IdempotencyStore, key: bytes, client: str = "client") -> FirstRequest | None:
    return store.begin(key, b"f", "id", client)


def outcome(store: IdempotencyStore, key: bytes) -> Answer | str | None:
    """What is known of a key that is in the store; None while its request is running."""
    first = begin(store, key)
    assert first is not None
    return first.outcome
