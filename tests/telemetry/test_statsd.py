"""What a statsd server receives."""

from __future__ import annotations

import logging
import socket
from pathlib import Path
from typing import Any
from wsgiref.types import StartResponse, WSGIEnvironment

import pytest

from tests.support.inprocess import BridgeThread, wait_until
from tests.support.records import record
from tests.support.supervised import Supervised
from threadbridge import Bridge
from threadbridge.telemetry.http_metrics import HttpDurations
from threadbridge.telemetry.statsd import LARGEST, Statsd


def application(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
    start_response("404 Not Found" if environ["PATH_INFO"] == "/none" else "200 OK", [("Content-Type", "text/plain")])
    return [b"hello"]


class Server:
    """Receives datagrams whose lines have this prefix and these tags."""

    def __init__(self, prefix: str = "", tags: str = "") -> None:
        self.prefix, self.tags = prefix, tags
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))
        self.socket.settimeout(30)
        self.address = f"127.0.0.1:{self.socket.getsockname()[1]}"
        self.counters: dict[str, int] = {}
        self.durations: list[float] = []
        self.workers: list[int] = []

    def receive(self) -> bytes:
        """Take in one datagram."""
        datagram = self.socket.recv(65536)
        for line in datagram.decode().split("\n"):
            assert line.startswith(self.prefix) and line.endswith(self.tags), line
            name, _, rest = line.removeprefix(self.prefix).removesuffix(self.tags).partition(":")
            value, kind = rest.split("|")
            if name == "gunicorn.workers":
                assert kind == "g"
                self.workers.append(int(value))
            elif kind == "c":
                self.counters[name] = self.counters.get(name, 0) + int(value)
            else:
                assert (name, kind) == ("gunicorn.request.duration", "ms")
                self.durations.append(float(value))
        return datagram


@pytest.fixture(name="statsd")
def _statsd() -> Server:
    return Server()


def test_counts_and_durations(statsd: Server) -> None:
    with BridgeThread(application, threads=1, statsd=statsd.address) as server:
        for path in ("/", "/none", "/"):
            server.request(path=path)
        while len(statsd.durations) < 3 or statsd.counters.get("gunicorn.requests", 0) < 3:
            statsd.receive()
    assert statsd.counters["gunicorn.requests"] == 3
    assert statsd.counters["gunicorn.request.status.200"] == 2
    assert statsd.counters["gunicorn.request.status.404"] == 1
    assert all(0 < duration < 30_000 for duration in statsd.durations)


def test_how_long_a_websocket_was_open_is_no_duration(statsd: Server) -> None:
    Statsd(statsd.address)([record(total=3600.0, status=101), record(total=0.25, status=200)])
    statsd.receive()
    assert statsd.durations == [250.0]
    names = ("gunicorn.requests", "gunicorn.request.status.101", "gunicorn.request.status.200")
    assert statsd.counters == dict(zip(names, (2, 1, 1), strict=True))
    durations = HttpDurations()
    durations.read([record(lane="websocket", total=3600.0, status=101), record(lane="quick", total=0.25, status=200)])
    assert [(key[2], found.sum) for key, found in durations.found.items()] == [(200, 0.25)]


def test_many_requests_take_few_datagrams(statsd: Server) -> None:
    reader = Statsd(statsd.address)
    reader([record(total=0.0125) for _ in range(500)])
    reader.close()
    sizes = []
    while "gunicorn.request.status.200" not in statsd.counters:
        sizes.append(len(statsd.receive()))
    assert statsd.counters == {"gunicorn.requests": 500, "gunicorn.request.status.200": 500}
    assert statsd.durations == [12.5] * 500
    assert max(sizes) <= LARGEST and sum(sizes) / len(sizes) > LARGEST / 2


def test_processes_with_a_prefix_and_tags(tmp_path: Path) -> None:
    statsd = Server("shop.", "|#env:prod,team:a")
    arguments = (f"--statsd={statsd.address}", "--statsd_prefix=shop", "--dogstatsd_tags=env:prod,team:a")
    with Supervised(tmp_path, *arguments) as site:
        asked = 0
        while len(site.pids()) < 2 or asked < 20:
            site.ask()
            asked += 1
        # Each sends what it has answered; the supervisor, how many there are.
        while statsd.counters.get("gunicorn.requests", 0) < asked or 2 not in statsd.workers:
            statsd.receive()
        assert site.stop() == 0
    assert statsd.counters["gunicorn.requests"] == asked == len(statsd.durations)


def test_a_server_that_is_gone_harms_nothing(statsd: Server, caplog: pytest.LogCaptureFixture) -> None:
    statsd.socket.close()
    caplog.set_level(logging.WARNING, "threadbridge")
    with BridgeThread(application, threads=1, statsd=statsd.address) as server:
        totals = server.bridge.totals.requests
        for number in range(1, 4):
            assert server.request()[0].status == 200
            wait_until(lambda number=number: sum(totals.values()) == number, "it is recorded")  # type: ignore[misc]
    assert "a reader of the telemetry failed" not in caplog.text


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"statsd_prefix": "a:b", "statsd": "127.0.0.1:1"}, "statsd_prefix='a:b': expected letters"),
        ({"dogstatsd_tags": "a|b", "statsd": "127.0.0.1:1"}, r"dogstatsd_tags='a\|b': expected tags"),
        ({"statsd_prefix": "a"}, "statsd_prefix without statsd"),
        ({"dogstatsd_tags": "a:b"}, "dogstatsd_tags without statsd"),
    ],
)
def test_what_cannot_be_used(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Bridge(application, threads=1, **settings)


@pytest.mark.parametrize("address", ["127.0.0.1", ":8125", "127.0.0.1:x", "no.such.host.invalid:8125"])
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(ValueError, match=f"statsd='{address}': "):
        BridgeThread(application, threads=1, statsd=address)
