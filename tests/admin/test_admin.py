"""The operators' port over real HTTP: what it shows, and how it stops requests."""

from __future__ import annotations

import json
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from functools import partial
from itertools import islice
from pathlib import Path
from wsgiref.types import StartResponse, WSGIEnvironment

import pytest
import requests

from tests.support.admin_site import FROM_PAGE, Site, answer
from tests.support.inprocess import BridgeThread, wait_until
from tests.support.site_process import entered
from threadbridge.crossing.states import State


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with Site(tmp_path) as site:
        yield site


@pytest.fixture(scope="module")
def quiet_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A frontend shared by the tests that change nothing."""
    with Site(tmp_path_factory.mktemp("site")) as site:
        yield site


def test_the_first_line_of_output_has_its_address(quiet_site: Site) -> None:
    expected = f"Serving on {quiet_site.url}/ (pid {quiet_site.process.pid}, operators: http://127.0.0.1:{quiet_site.admin_port}/)\n"
    assert quiet_site.output().startswith(expected)


def test_it_shows_running_waiting_and_ended_requests(site: Site) -> None:
    with ExitStack() as stack:
        clients = [site.occupy(stack, "one"), site.occupy(stack, "two", "/cancellable")]
        clients.append(stack.enter_context(site.send(f"/slow?{site.directory / 'three'}", "POST")))
        wait_until(lambda: site.document()["counts"]["waiting"] == 1, "the third waits")
        document = site.document()
        [process] = document["processes"]
        assert (process["pid"], process["addresses"]) == (site.process.pid, [f"{site.url}/"])
        [lane] = process["lanes"]
        numbers = {"threads": 2, "busy": 2, "queued": 1, "queue": 1000, "kept": 0, "short_below": 0.1}
        assert lane == {"name": "default", **numbers}
        rows = document["requests"]
        # Running requests come first, the oldest at the top.
        assert [(row["state"], row["method"], row["url"].rpartition("/")[2]) for row in rows] == [
            ("running", "GET", "one"),
            ("running", "GET", "two"),
            ("waiting", "POST", "three"),
        ]
        assert {row["client"] for row in rows} == {"127.0.0.1"}
        assert rows[0]["running"] >= rows[1]["running"] > 0
        assert rows[2]["waiting"] > 0 and rows[2]["running"] == 0
        ids = [row["id"] for row in rows]
        site.finish("one", "two", "three")
        assert [b"200 OK" in answer(client) for client in clients] == [True] * 3
    wait_until(lambda: not site.document()["requests"], "all have ended")
    document = site.document()
    finished = {bar["id"]: bar for bar in document["finished"]}
    assert [(finished[name]["ending"], finished[name]["status"]) for name in ids] == [("done", 200)] * 3
    assert finished[ids[2]]["waiting"] > 0
    assert sum(slot["endings"].get("done", 0) for slot in document["history"]) == 3
    assert 0 < document["latencies"]["p50"] <= document["latencies"]["p95"] <= document["latencies"]["p99"]
    slots = [slot for slot in document["history"] if slot["endings"]]
    assert all(0 < slot["p50"] <= slot["p95"] <= slot["p99"] for slot in slots)


def test_it_answers_at_once_while_a_thousand_requests_wait(tmp_path: Path) -> None:
    with Site(tmp_path, "--queue=1000", "--queue_timeout=100") as site, ExitStack() as stack:
        site.occupy(stack, "one")
        site.occupy(stack, "two")
        for _ in range(1000):
            stack.enter_context(site.send("/"))
        wait_until(lambda: site.document()["counts"]["waiting"] == 1000, "a thousand wait", 30)
        session = stack.enter_context(requests.Session())
        slowest = {}
        for path in ("/healthz", "/requests.json"):
            times = []
            for _ in range(20):
                began = time.perf_counter()
                assert session.get(f"http://127.0.0.1:{site.admin_port}{path}", timeout=20).status_code == 200
                times.append(time.perf_counter() - began)
            slowest[path] = sorted(times)[len(times) // 2]
        print("median seconds with 1,000 waiting:", slowest)
        document = site.document()
        assert document["counts"] == {"receiving": 0, "waiting": 1000, "running": 2, "sending": 0}
        # A limited number of them, the running ones first.
        assert len(document["requests"]) == 200
        assert [row["state"] for row in document["requests"][:3]] == ["running", "running", "waiting"]
        site.finish("one", "two")


def test_the_page_gets_an_event_a_second_and_does_not_delay_the_end(site: Site) -> None:
    with requests.get(f"http://127.0.0.1:{site.admin_port}/events", stream=True, timeout=20) as stream:
        assert stream.headers["Content-Type"] == "text/event-stream"
        lines = stream.iter_lines()
        documents = [json.loads(line.removeprefix(b"data: ")) for line in islice(lines, 3) if line]
        assert documents[0].keys() | {"learned"} == site.document().keys()
        assert documents[1]["now"] > documents[0]["now"]
        site.process.send_signal(signal.SIGTERM)
        # The stream ends cleanly, and so does the process.
        assert all(not line or line.startswith(b"data: ") for line in lines)
        assert site.process.wait(20) == 0


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/readyz?db=1", "/metrics", "/requests.json", "/", "/nothing"])
def test_head_is_answered_like_get_without_the_body(quiet_site: Site, path: str) -> None:
    with socket.create_connection(("127.0.0.1", quiet_site.admin_port), timeout=20) as client:
        client.sendall(f"HEAD {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        head, end, body = answer(client).partition(b"\r\n\r\n")
    full = quiet_site.admin(path)
    assert (int(head[9:12]), end, body) == (full.status_code, b"\r\n\r\n", b"")
    headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n")[1:])
    assert headers["Content-Type"] == full.headers["Content-Type"]
    assert int(headers["Content-Length"]) > 0


def test_head_of_the_events_ends_at_once(quiet_site: Site) -> None:
    answered = quiet_site.admin("/events", "HEAD")
    assert (answered.status_code, answered.headers["Content-Type"]) == (200, "text/event-stream")


# Stopping a request.


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_running_request_is_stopped_whatever_its_method(site: Site, method: str) -> None:
    with ExitStack() as stack:
        client = stack.enter_context(site.send(f"/cancellable?{site.directory / 'flag'}", method))
        wait_until(lambda: entered(site.directory / "flag"), "it runs")
        [row] = site.document()["requests"]
        stopped = site.admin(f"/requests/{row['key']}/cancel", "POST", headers=FROM_PAGE)
        assert (stopped.status_code, stopped.json()) == (200, {"stopped": 1})
        assert answer(client).startswith(b"HTTP/1.1 504 ")
        # Its callback was called.
        wait_until((site.directory / "flag").exists, "it is cancelled")
    wait_until(
        lambda: f"request {row['id']}: stopped by an operator (127.0.0.1): {method} /canc" in site.output(),
        "it is logged",
    )
    wait_until(lambda: bool(site.document()["finished"]), "it has ended")
    assert [(bar["id"], bar["ending"]) for bar in site.document()["finished"]] == [(row["id"], "expired")]


def test_a_waiting_request_is_stopped_and_never_runs(site: Site) -> None:
    with ExitStack() as stack:
        site.occupy(stack, "one")
        site.occupy(stack, "two")
        client = stack.enter_context(site.send(f"/slow?{site.directory / 'three'}"))
        wait_until(lambda: site.document()["counts"]["waiting"] == 1, "it waits")
        row = site.document()["requests"][-1]
        assert site.admin(f"/requests/{row['key']}/cancel", "POST", headers=FROM_PAGE).status_code == 200
        assert answer(client).startswith(b"HTTP/1.1 503 ")
        site.finish("one", "two")
        wait_until(lambda: not site.document()["requests"], "all have ended")
    assert not entered(site.directory / "three")


def test_a_request_that_is_being_received_is_stopped(site: Site) -> None:
    with socket.create_connection(("127.0.0.1", site.port), timeout=20) as client:
        client.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nab")
        wait_until(lambda: site.document()["counts"]["receiving"] == 1, "its head is there")
        document = site.document()
        [row] = document["requests"]
        assert (row["state"], row["waiting"], row["running"]) == ("receiving", 0, 0)
        assert 0 <= document["now"] - row["since"] < 30
        assert site.admin(f"/requests/{row['key']}/cancel", "POST", headers=FROM_PAGE).status_code == 200
        assert client.recv(65536).startswith(b"HTTP/1.1 503 ")


def test_a_response_that_has_begun_is_cut_off() -> None:
    closed = threading.Event()

    def endless() -> Iterator[bytes]:
        try:
            while True:
                yield b"more" * 100
        finally:
            closed.set()

    def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterator[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return endless()

    with (
        BridgeThread(application, threads=1) as server,
        server.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n") as client,
    ):
        assert client.recv(100).startswith(b"HTTP/1.1 200 OK")
        [exchange] = server.bridge.exchanges.open
        server.loop.call_soon_threadsafe(server.bridge.exchanges.stop, exchange)
        received = b""
        with suppress(ConnectionResetError):
            while part := client.recv(65536):
                received += part
        # Without the last chunk, the client sees that the response is incomplete.
        assert not received.endswith(b"0\r\n\r\n")
        assert closed.wait(30)
        assert exchange.state is State.ABANDONED


def test_requests_with_the_same_id_have_different_keys(tmp_path: Path) -> None:
    with Site(tmp_path, "--xheaders", "--threads=3") as site, ExitStack() as stack:
        for name in ("one", "two", "three"):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", site.port), timeout=20))
            head = f"GET /cancellable?{tmp_path / name} HTTP/1.1\r\nHost: a\r\nX-Request-ID: ..\r\n\r\n"
            client.sendall(head.encode())
            wait_until(partial(entered, tmp_path / name), f"{name} runs")
        rows = site.document()["requests"]
        assert [row["id"] for row in rows] == [".."] * 3
        assert len({row["key"] for row in rows}) == 3
        stopped = site.admin(f"/requests/{rows[1]['key']}/cancel", "POST", headers=FROM_PAGE)
        assert stopped.json() == {"stopped": 1}
        wait_until(lambda: len(site.document()["requests"]) == 2, "one of them has ended")
        assert [row["key"] for row in site.document()["requests"]] == [rows[0]["key"], rows[2]["key"]]
        # An id means all requests that have it. HTTP clients would remove the dots from the path.
        with socket.create_connection(("127.0.0.1", site.admin_port), timeout=20) as client:
            client.sendall(
                b"POST /requests/../cancel HTTP/1.1\r\nHost: localhost\r\nX-Threadbridge: test\r\n"
                b"Content-Length: 0\r\nConnection: close\r\n\r\n"
            )
            assert answer(client).endswith(b'{"stopped":2}')
        wait_until(lambda: len(site.document()["finished"]) == 3, "all have ended")
        assert {bar["key"] for bar in site.document()["finished"]} == {row["key"] for row in rows}


def test_an_unknown_request_cannot_be_stopped(quiet_site: Site) -> None:
    gone = quiet_site.admin("/requests/1-000001/cancel", "POST", headers=FROM_PAGE)
    assert (gone.status_code, "no such request" in gone.text) == (404, True)


# Stacks and metrics.


def test_the_stacks_name_each_workers_request(site: Site) -> None:
    with ExitStack() as stack:
        site.occupy(stack, "one")
        [row] = site.document()["requests"]
        text = site.admin("/threads").text
        assert text.startswith(f"Process {site.process.pid}, {site.url}/. ")
        # The worker first.
        head, *calls = text.split("\n\n")[1].split("\n")
        assert head.startswith("threadbridge-default_")
        assert head.endswith(f": request {row['id']}, GET /slow?{site.directory / 'one'}")
        assert any("site_app.py" in call and "wait_for" in call for call in calls)
        assert "MainThread\n" in text
        site.finish("one")


def test_the_metrics_count_the_requests(site: Site) -> None:
    for _ in range(3):
        requests.get(f"{site.url}/", timeout=20)
    answered = site.admin("/metrics")
    assert answered.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert 'threadbridge_requests_total{ending="done",lane="default",status="2xx"} 3.0' in answered.text
