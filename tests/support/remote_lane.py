"""A bridge with a remote lane, for tests in which other hosts run its requests."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from wsgiref.types import StartResponse, WSGIEnvironment

from tests.support.inprocess import BridgeThread, wait_until
from threadbridge import Lane
from threadbridge.telemetry.record import Record

NEVER_RAN = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 7\r\nX-Threadbridge-Ran: no\r\nContent-Length: 4\r\n\r\nfull"
)


def application(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
    """Answers with the variables of the request and its body's length; what /local asks runs here."""
    body = environ["wsgi.input"].read()
    shown = {name: value for name, value in environ.items() if isinstance(value, str)}
    start_response("200 OK", [("Content-Type", "application/json"), ("Set-Cookie", "a=1"), ("Set-Cookie", "b=2")])
    return [json.dumps({**shown, "length": len(body)}).encode()]


@contextmanager
def frontend(*urls: str, **settings: Any) -> Iterator[BridgeThread]:
    """A bridge with a remote lane for /far/ at these URLs; ``records`` are those of its requests."""
    lanes = [Lane("far", "/far/*", upstream=urls, queue=settings.pop("room", 1000))]
    with BridgeThread(application, threads=2, lanes=lanes, **settings) as server:
        records: list[Record] = []
        server.bridge.telemetry.subscribe(records.extend)
        server.records = records  # type: ignore[attr-defined]
        yield server


def record_of(server: BridgeThread) -> Record:
    records: list[Record] = server.records  # type: ignore[attr-defined]
    wait_until(lambda: bool(records), "a record")
    return records.pop(0)


def hosts(server: BridgeThread) -> list[Any]:
    [upstream] = server.bridge.forwarding.upstreams.values()
    return upstream.hosts
