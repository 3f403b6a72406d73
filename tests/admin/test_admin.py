"""The operators' port by real HTTP: what it shows, whom it answers, what it stops, and whether it is healthy."""

from __future__ import annotations

import json
import re
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from email.utils import parsedate_to_datetime
from functools import partial
from http.cookies import SimpleCookie
from itertools import count, cycle, islice
from pathlib import Path
from wsgiref.types import StartResponse, WSGIEnvironment

import pytest
import requests
from tornado.web import create_signed_value

from tests.support.admin_site import FROM_PAGE, Site, answer, write_token
from tests.support.inprocess import BridgeThread, wait_until
from tests.support.site_process import Process, entered
from threadbridge.admin.access import Access
from threadbridge.admin.authorization import SESSION
from threadbridge.admin.throttle import FREE_MISTAKES, MISTAKES_AT_ONCE, Throttle
from threadbridge.crossing.states import State

TOKEN = "correct horse battery staple"
BEARER = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with Site(tmp_path) as site:
        yield site


@pytest.fixture(scope="module")
def quiet_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One for all tests that only ask."""
    with Site(tmp_path_factory.mktemp("site")) as site:
        yield site


def test_it_says_where_it_is(quiet_site: Site) -> None:
    expected = f"Serving on {quiet_site.url}/ (pid {quiet_site.process.pid}, operators: http://127.0.0.1:{quiet_site.admin_port}/)\n"
    assert quiet_site.output().startswith(expected)


def test_it_shows_what_runs_what_waits_and_what_has_ended(site: Site) -> None:
    with ExitStack() as stack:
        clients = [site.occupy(stack, "one"), site.occupy(stack, "two", "/cancellable")]
        clients.append(stack.enter_context(site.send(f"/slow?{site.directory / 'three'}", "POST")))
        wait_until(lambda: site.document()["counts"]["waiting"] == 1, "the third waits")
        document = site.document()
        [process] = document["processes"]
        assert (process["pid"], process["addresses"]) == (site.process.pid, [f"{site.url}/"])
        assert process["lanes"] == [{"name": "default", "threads": 2, "busy": 2, "queued": 1, "queue": 1000}]
        rows = document["requests"]
        # What runs is first, and what runs for longer.
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


def test_it_answers_at_once_with_a_thousand_waiting(tmp_path: Path) -> None:
    with Site(tmp_path, "--queue=1000") as site, ExitStack() as stack:
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
        # A bounded part of them, what runs first.
        assert len(document["requests"]) == 200
        assert [row["state"] for row in document["requests"][:3]] == ["running", "running", "waiting"]
        site.finish("one", "two")


def test_the_page_gets_an_event_a_second_and_does_not_delay_the_end(site: Site) -> None:
    with requests.get(f"http://127.0.0.1:{site.admin_port}/events", stream=True, timeout=20) as stream:
        assert stream.headers["Content-Type"] == "text/event-stream"
        lines = stream.iter_lines()
        documents = [json.loads(line.removeprefix(b"data: ")) for line in islice(lines, 3) if line]
        assert documents[0].keys() == site.document().keys()
        assert documents[1]["now"] > documents[0]["now"]
        site.process.send_signal(signal.SIGTERM)
        # The stream ends in order, and so does the process.
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


def test_a_request_that_still_arrives_is_stopped(site: Site) -> None:
    with socket.create_connection(("127.0.0.1", site.port), timeout=20) as client:
        client.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nab")
        wait_until(lambda: site.document()["counts"]["receiving"] == 1, "its head is there")
        document = site.document()
        [row] = document["requests"]
        assert (row["state"], row["waiting"], row["running"]) == ("receiving", 0, 0)
        assert 0 <= document["now"] - row["since"] < 30
        assert site.admin(f"/requests/{row['key']}/cancel", "POST", headers=FROM_PAGE).status_code == 200
        assert client.recv(65536).startswith(b"HTTP/1.1 503 ")


def test_a_response_that_has_begun_is_cut() -> None:
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
        [exchange] = server.bridge.exchanges
        server.loop.call_soon_threadsafe(server.bridge.stop, exchange)
        received = b""
        with suppress(ConnectionResetError):
            while part := client.recv(65536):
                received += part
        # No last chunk: the client sees that this is not all.
        assert not received.endswith(b"0\r\n\r\n")
        assert closed.wait(10)
        assert exchange.state is State.ABANDONED


def test_requests_of_one_name_are_told_apart(tmp_path: Path) -> None:
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
        # An id stands for all that have it. Clients of HTTP take away a path of dots.
        with socket.create_connection(("127.0.0.1", site.admin_port), timeout=20) as client:
            client.sendall(
                b"POST /requests/../cancel HTTP/1.1\r\nHost: localhost\r\nX-Threadbridge: test\r\n"
                b"Content-Length: 0\r\nConnection: close\r\n\r\n"
            )
            assert answer(client).endswith(b'{"stopped":2}')
        wait_until(lambda: len(site.document()["finished"]) == 3, "all have ended")
        assert {bar["key"] for bar in site.document()["finished"]} == {row["key"] for row in rows}


def test_a_request_that_is_not_there_cannot_be_stopped(quiet_site: Site) -> None:
    gone = quiet_site.admin("/requests/1-000001/cancel", "POST", headers=FROM_PAGE)
    assert (gone.status_code, "no such request" in gone.text) == (404, True)


# Who is answered.


@pytest.mark.parametrize(
    "host", ["evil.example.com", "evil.example.com:9000", "127.0.0.1.evil.example", "", "[", "10.0.0.1"]
)
def test_under_a_foreign_name_nothing_is_served(quiet_site: Site, host: str) -> None:
    for path in ("/", "/requests.json", "/healthz", "/events", "/nothing"):
        refused = quiet_site.admin(path, headers={"Host": host})
        assert (refused.status_code, "unknown Host" in refused.text) == (421, True), path
    stop = quiet_site.admin("/requests/1-1/cancel", "POST", headers={**FROM_PAGE, "Host": host})
    assert stop.status_code == 421


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:1", "[::1]:9000", "127.9.9.9"])
def test_under_its_own_names_it_is(quiet_site: Site, host: str) -> None:
    assert quiet_site.admin("/healthz", headers={"Host": host}).status_code == 200


def test_other_sites_pages_stop_nothing(site: Site) -> None:
    with ExitStack() as stack:
        site.occupy(stack, "one")
        [row] = site.document()["requests"]
        path = f"/requests/{row['key']}/cancel"
        # What a form of another site can send, and what its script could if it were allowed to.
        assert site.admin(path, "POST").status_code == 403
        foreign = {**FROM_PAGE, "Origin": "http://evil.example.com"}
        assert site.admin(path, "POST", headers=foreign).status_code == 403
        assert site.admin(path, "POST", headers={**FROM_PAGE, "Origin": "null"}).status_code == 403
        assert "Access-Control-Allow-Origin" not in site.admin(path, "OPTIONS", headers=foreign).headers
        assert [row["state"] for row in site.document()["requests"]] == ["running"]
        own = {**FROM_PAGE, "Origin": f"http://127.0.0.1:{site.admin_port}"}
        assert site.admin(path, "POST", headers=own).status_code == 200
        site.finish("one")


def test_the_page_loads_nothing_from_elsewhere_and_can_be_framed_by_nobody(quiet_site: Site) -> None:
    page = quiet_site.admin("/")
    assert page.headers["Content-Type"].startswith("text/html")
    assert page.headers["Content-Security-Policy"].startswith("default-src 'self'; ")
    assert "frame-ancestors 'none'" in page.headers["Content-Security-Policy"]
    assert page.headers["X-Content-Type-Options"] == "nosniff"
    assert page.headers["Cache-Control"] == "no-store"
    assert "://" not in page.text.replace("http://www.w3.org/2000/svg", "")
    assert (
        quiet_site.admin("/static/page.js")
        .headers["Content-Type"]
        .startswith(("text/javascript", "application/javascript"))
    )
    assert quiet_site.admin("/static/../server.py").status_code == 404
    for path in ("%2e%2e/server.py", "%00", "page.js%00", ""):
        assert quiet_site.admin(f"/static/{path}").status_code == 404, path


def test_the_application_is_not_at_this_port_nor_this_at_the_applications(quiet_site: Site) -> None:
    assert quiet_site.admin("/slow").status_code == 404
    assert requests.get(f"{quiet_site.url}/requests.json", timeout=20).text == f"http {quiet_site.process.pid}"


# The token.


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    write_token(path, TOKEN + "\n")
    return path


def test_with_a_token_only_who_has_it_is_answered(tmp_path: Path, token_file: Path) -> None:
    with Site(tmp_path, f"--admin_token_file={token_file}") as site:
        for path in ("/requests.json", "/events", "/local/processes.json"):
            refused = site.admin(path)
            assert (refused.status_code, refused.headers["WWW-Authenticate"]) == (401, "Bearer"), path
            assert site.admin(path, headers={"Authorization": "Bearer wrong"}).status_code == 401, path
        assert site.admin("/requests/1-1/cancel", "POST", headers=FROM_PAGE).status_code == 401
        assert site.admin("/requests.json", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200
        # A watchdog needs none.
        assert site.admin("/healthz").status_code == 200
        form = site.admin("/")
        assert (form.status_code, 'type="password"' in form.text) == (401, True)

        wrong = site.admin("/login", "POST", data={"token": "wrong"})
        assert (wrong.status_code, "Set-Cookie" in wrong.headers) == (303, False)
        right = site.admin("/login", "POST", data={"token": TOKEN})
        assert (right.status_code, right.headers["Location"]) == (303, "/")
        cookie = right.headers["Set-Cookie"]
        assert "HttpOnly" in cookie and "SameSite=Strict" in cookie and TOKEN not in cookie
        [(name, value)] = right.cookies.items()
        assert site.admin("/requests.json", cookies={name: value}).status_code == 200
        for forged in (value[:-1], value.replace("|1:0|", "|1:1|"), value + "0", "operator", ""):
            assert forged != value
            assert site.admin("/requests.json", cookies={name: forged}).status_code == 401, forged
        assert TOKEN not in site.output()


def test_a_session_ends_after_twelve_hours_and_holds_in_all_processes(tmp_path: Path, token_file: Path) -> None:
    secret = Access("127.0.0.1", str(token_file)).cookie_secret
    with Site(tmp_path, f"--admin_token_file={token_file}", "--processes=2") as site:
        login = site.admin("/login", "POST", data={"token": TOKEN})
        [(name, cookie)] = SimpleCookie(login.headers["Set-Cookie"]).items()
        assert abs(parsedate_to_datetime(cookie["expires"]).timestamp() - time.time() - 12 * 3600) < 60
        wait_until(lambda: len(site.admin("/threads", headers=BEARER).text.split("\nProcess ")) == 2, "both answer")
        # Each connection may reach either process.
        session = {name: cookie.value}
        assert [site.admin("/requests.json", cookies=session).status_code for _ in range(20)] == [200] * 20

        def made(hours: float) -> str:
            """A session that began so many hours ago."""
            then = time.time() - hours * 3600
            return create_signed_value(secret, name, SESSION, clock=lambda: then).decode()

        statuses = [site.admin("/requests.json", cookies={name: made(hours)}).status_code for hours in (11.9, 12)]
        assert statuses == [200, 401]


def test_sessions_end_with_the_token(tmp_path: Path, token_file: Path) -> None:
    with Site(tmp_path, f"--admin_token_file={token_file}") as site:
        cookies = site.admin("/login", "POST", data={"token": TOKEN}).cookies
        port = site.admin_port
    for token, status in ((TOKEN, 200), ("another token than before", 401)):
        write_token(token_file, token)
        with Site(tmp_path, f"--admin_token_file={token_file}", admin_port=port) as site:
            assert site.admin("/requests.json", cookies=cookies).status_code == status


def test_beyond_loopback_a_token_is_needed(tmp_path: Path, token_file: Path) -> None:
    for address in ("0.0.0.0", "", "::"):
        refused = Site(tmp_path, f"--admin_address={address}").run_to_its_end()
        assert refused.returncode == 2
        assert "is not loopback: give admin_token_file" in refused.stderr
        assert refused.stderr.count("\n") == 1
    with Site(tmp_path, "--admin_address=0.0.0.0", f"--admin_token_file={token_file}") as site:
        # The address at which the request has arrived is one of its names, another is not.
        assert site.admin("/healthz").status_code == 200
        assert site.admin("/healthz", headers={"Host": "192.0.2.1"}).status_code == 421


@pytest.mark.parametrize(
    ("content", "mode", "complaint"),
    [
        (None, 0, "No such file or directory"),
        ("short", 0o600, "the token has 5 characters"),
        ("abab" * 8, 0o600, "the token has only 2 different characters"),
        ("ü" * 16, 0o600, "expected ASCII"),
        (TOKEN, 0o604, "other users may read or change it; chmod 600 "),
        (TOKEN, 0o620, "other users may read or change it; chmod 600 "),
    ],
)
def test_a_token_file_that_cannot_be_used(tmp_path: Path, content: str | None, mode: int, complaint: str) -> None:
    path = tmp_path / "token"
    if content is not None:
        path.write_text(content)
        path.chmod(mode)
    with pytest.raises(ValueError, match=re.escape(f"admin_token_file {path}: {complaint}")) as refused:
        Access("127.0.0.1", str(path))
    assert content is None or content not in str(refused.value)


def test_a_token_file_that_cannot_be_used_is_told_in_one_line(tmp_path: Path) -> None:
    refused = Site(tmp_path, f"--admin_token_file={tmp_path / 'token'}").run_to_its_end()
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert f"admin_token_file {tmp_path / 'token'}: No such file or directory" in refused.stderr


def test_wrong_tokens_are_slowed_down_and_logged(tmp_path: Path, token_file: Path) -> None:
    with Site(tmp_path, f"--admin_token_file={token_file}") as site, requests.Session() as session:
        address = f"http://127.0.0.1:{site.admin_port}"
        [(name, value)] = site.admin("/login", "POST", data={"token": TOKEN}).cookies.items()
        statuses: Counter[int] = Counter()
        for _ in range(100):
            guess = session.post(f"{address}/login", data={"token": "wrong"}, allow_redirects=False, timeout=20)
            statuses[guess.status_code] += 1
            headers = {"Authorization": "Bearer wrong"}
            statuses[session.get(f"{address}/requests.json", headers=headers, timeout=20).status_code] += 1
        looked_at = statuses[303] + statuses[401]
        assert FREE_MISTAKES < looked_at < FREE_MISTAKES + 6 and looked_at + statuses[429] == 200, statuses
        # Not even the right one is looked at now.
        slowed = site.admin("/login", "POST", data={"token": TOKEN})
        assert (slowed.status_code, 0 < int(slowed.headers["Retry-After"]) <= 60) == (429, True)
        # Who is logged in notices nothing.
        assert site.admin("/requests.json", cookies={name: value}).status_code == 200
        log = site.output()
        assert "operators' port: a login from 127.0.0.1" in log
        assert log.count("operators' port: a wrong token from 127.0.0.1, at the login") == 1
        # With the lines about where it serves and on which Python.
        assert len(log.splitlines()) < 10, log


def test_guesses_are_few_from_one_client_and_from_all(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)

    def guesses(addresses: Iterator[str], seconds: int) -> int:
        """How many are looked at, if each client tries as often as it may."""
        nonlocal now
        throttle, until, looked_at = Throttle(), now + seconds, 0
        while now < until:
            address = next(addresses)
            if delay := throttle.delay(address):
                now += delay
            else:
                throttle.wrong(address, "in a test")
                looked_at += 1
        return looked_at

    one = guesses(cycle(["192.0.2.1"]), 3600)
    assert FREE_MISTAKES + 3600 / 60 < one < FREE_MISTAKES + 3600 / 60 + 7
    network = guesses((f"2001:db8::{number:x}" for number in count()), 3600)
    assert network == one
    everybody = guesses((f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}" for number in count()), 3600)
    assert everybody <= 3600 + MISTAKES_AT_ONCE


def test_behind_a_proxy_with_https_the_login_works_under_the_names_that_are_given(
    tmp_path: Path, token_file: Path
) -> None:
    with Site(tmp_path, f"--admin_token_file={token_file}", "--admin_names=ops.example.com") as site:
        browser = {"Host": "ops.example.com", "Origin": "https://ops.example.com"}
        proxied = {**browser, "X-Forwarded-Proto": "https", "X-Forwarded-For": "192.0.2.7"}
        answered = site.admin("/login", "POST", data={"token": TOKEN}, headers=proxied)
        assert (answered.status_code, "Secure" in answered.headers["Set-Cookie"]) == (303, True)
        assert "operators' port: a login from 192.0.2.7, by the proxy 127.0.0.1" in site.output()
        [(name, value)] = answered.cookies.items()
        # As the proxy passes it on.
        cookie = {"Cookie": f"{name}={value}"}
        assert site.admin("/requests.json", headers={**proxied, **cookie}).status_code == 200
        stop = site.admin("/requests/1-1/cancel", "POST", headers={**FROM_PAGE, **proxied, **cookie})
        assert stop.status_code == 404
        for foreign in (
            {**proxied, "Origin": "http://ops.example.com"},
            {**proxied, "Origin": "https://evil.example.com"},
            {**proxied, "Host": "evil.example.com", "Origin": "https://evil.example.com"},
            browser,
        ):
            assert site.admin("/login", "POST", data={"token": TOKEN}, headers=foreign).status_code in (403, 421)
        direct = site.admin("/login", "POST", data={"token": TOKEN})
        assert (direct.status_code, "Secure" in direct.headers["Set-Cookie"]) == (303, False)


@pytest.mark.parametrize("name", ["ops.example.com:8443", "https://ops.example.com", "a b"])
def test_a_public_name_that_cannot_be_used(name: str) -> None:
    with pytest.raises(ValueError, match=r"admin_names: .*: expected a host name without a port"):
        Access("127.0.0.1", None, [name])


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as owner:
        port = owner.getsockname()[1]
        refused = Process(tmp_path, "--port={port}", f"--admin_port={port}").run_to_its_end()
    assert refused.returncode == 1
    assert refused.stderr == f"python -m threadbridge: cannot listen on 127.0.0.1:{port}: Address already in use\n"


# What else there is to see.


def test_the_stacks_tell_what_each_worker_does_and_for_which_request(site: Site) -> None:
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


def test_the_metrics_are_those_of_this_process(site: Site) -> None:
    for _ in range(3):
        requests.get(f"{site.url}/", timeout=20)
    answered = site.admin("/metrics")
    assert answered.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert 'threadbridge_requests_total{ending="done",lane="default",status="2xx"} 3.0' in answered.text
