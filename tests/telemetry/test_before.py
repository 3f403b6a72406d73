"""The wait before the server, as real proxies tell it, and what clients are told of a request's times."""

from __future__ import annotations

import http.client
import logging
import re
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from wsgiref.types import StartResponse, WSGIEnvironment

import pytest

from tests.support.haproxy import haproxy
from tests.support.inprocess import BridgeThread, wait_until
from tests.support.nginx_server import Nginx
from threadbridge import current
from threadbridge.http import forwarded
from threadbridge.telemetry.access_log import write
from threadbridge.telemetry.record import Record


class Application:
    """Answers how many seconds a request has left; with the path ``/waits``, when the test says so."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self.go_on = threading.Event()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        if environ["PATH_INFO"] == "/waits":
            self.entered.release()
            assert self.go_on.wait(30)
        if environ["PATH_INFO"] == "/fails":
            raise LookupError("as asked")
        deadline = current().deadline
        assert deadline is not None
        start_response("200 OK", [("Content-Type", "text/plain"), ("Server-Timing", "own;dur=1")])
        return [str(deadline - time.monotonic()).encode()]


def records_of(server: BridgeThread) -> list[Record]:
    """The records of the server's requests from now on."""
    records: list[Record] = []

    def read(new: Sequence[Record]) -> None:
        records.extend(new)

    server.bridge.telemetry.subscribe(read)
    return records


def get(port: int, path: str = "/") -> tuple[http.client.HTTPResponse, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", path)
    response = connection.getresponse()
    body = response.read().decode()
    connection.close()
    return response, body


@pytest.mark.parametrize("unit", ["ms", "us"])
def test_a_queue_in_haproxy_counts(unit: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tornado.access")
    application = Application()
    lines = ("mode http", f"http-request set-header X-Request-Start t=%[date(0,{unit})]")
    with BridgeThread(application, threads=2, xheaders=True) as server:
        records = records_of(server)
        address = ("127.0.0.1", server.port)
        with haproxy([address], "roundrobin", lines, first="maxconn 1") as (_, port):
            clients = [threading.Thread(target=get, args=(port, "/waits")) for _ in range(2)]
            clients[0].start()
            assert application.entered.acquire(timeout=30)
            clients[1].start()
            # The second one is in HAProxy's queue, which nothing here can see.
            assert not application.entered.acquire(timeout=0.5)
            application.go_on.set()
            for client in clients:
                client.join()
        wait_until(lambda: len(records) == 2, "both are recorded")
        totals = server.bridge.totals.lanes["default"].before
    first, second = (record.before for record in records)
    # HAProxy's clock shows milliseconds.
    assert 0 <= first < second and second > 0.4
    assert records[1].wait < second
    assert sum(totals.counts) == 2 and totals.sum == pytest.approx(first + second)
    assert re.findall(r" before=(\d+\.\d)$", caplog.text, re.MULTILINE)[-1] == f"{1000 * second:.1f}"


def test_nginx_as_configured_here_tells_it(tmp_path: Path) -> None:
    with BridgeThread(Application(), threads=1, xheaders=True, client_address="x-real-ip") as server:
        records = records_of(server)
        ports = {f"127.0.0.1:{port}": f"127.0.0.1:{server.port}" for port in (8000, 8001)}
        with Nginx("standalone.conf", tmp_path, ports) as nginx:
            assert get(nginx.port)[0].status == 200
        wait_until(lambda: len(records) == 1, "it is recorded")
    assert 0 <= records[0].before < 20


def request(server: BridgeThread, ago: float) -> float:
    """The seconds left for a request that has come to its proxy so long ago."""
    _, body = server.request(headers={"X-Request-Start": f"t={time.time() - ago:.3f}"})
    return float(body)


def test_the_deadline_is_earlier_by_that_but_half_of_the_time_is_left() -> None:
    with BridgeThread(Application(), threads=1, deadline=1000, xheaders=True) as server:
        assert request(server, 300) == pytest.approx(700, abs=25)
        assert request(server, 900) == pytest.approx(500, abs=25)
        assert request(server, -300) == pytest.approx(1000, abs=25)


def test_what_others_say_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    with BridgeThread(Application(), threads=1, deadline=1000) as server:
        assert request(server, 300) == pytest.approx(1000, abs=25), "nobody is believed"
    monkeypatch.setattr(forwarded, "LOOPBACK", ())
    with BridgeThread(Application(), threads=1, deadline=1000, xheaders=True) as server:
        records = records_of(server)
        assert request(server, 300) == pytest.approx(1000, abs=25), "a stranger"
        wait_until(lambda: len(records) == 1, "it is recorded")
    assert records[0].before == -1


def test_a_record_without_it_has_no_field(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tornado.access")
    record = Record()
    record.status, record.ending = 200, "done"
    write([record])
    assert "before=" not in caplog.text


def timing(response: http.client.HTTPResponse) -> dict[str, float]:
    """The metrics of Server-Timing, read as a browser does."""
    found = {}
    for metric in ", ".join(response.headers.get_all("Server-Timing") or []).split(","):
        name, _, duration = metric.strip().partition(";dur=")
        if name:
            found[name] = float(duration)
    return found


def test_server_timing() -> None:
    application = Application()
    with BridgeThread(application, threads=1, server_timing=True, xheaders=True) as server:
        answers: list[dict[str, float]] = []
        clients = [threading.Thread(target=lambda: answers.append(timing(get(server.port, "/waits")[0])))]
        clients.append(threading.Thread(target=lambda: answers.append(timing(get(server.port)[0]))))
        clients[0].start()
        assert application.entered.acquire(timeout=30)
        clients[1].start()
        wait_until(lambda: server.bridge.lanes[0].queued == 1, "it waits")
        held = time.monotonic()
        time.sleep(0.2)  # for a time to be measured
        application.go_on.set()
        held = 1000 * (time.monotonic() - held)
        for client in clients:
            client.join()
        running, waiting = sorted(answers, key=lambda answer: answer["wait"])
        assert list(running) == list(waiting) == ["own", "wait", "run", "database"]
        assert running["run"] >= held - 1 and waiting["wait"] >= held - 1
        assert running["database"] == waiting["database"] == 0
        response, _ = server.request(headers={"X-Request-Start": f"t={time.time() - 2:.3f}"})
        assert timing(response)["before"] == pytest.approx(2000, abs=1000)
        response, _ = server.request(path="/fails")
        assert response.status == 500 and timing(response)["run"] >= 0
    with BridgeThread(application, threads=1) as server:
        assert timing(get(server.port)[0]) == {"own": 1}
