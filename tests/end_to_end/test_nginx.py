"""Both files in nginx/, run by the real nginx, with frontends that note what reaches them."""

from __future__ import annotations

import re
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import pytest
import requests
from tornado.httputil import HTTPHeaders

from tests.support.nginx_server import Nginx
from tests.support.processes import ROOT
from threadbridge.http.forwarded import ClientAddress, ClientHeaders, ForwardedHeaders

# A proxy of the machine has no part in this.
HTTP = requests.Session()
HTTP.trust_env = False


class Request(NamedTuple):
    method: str
    path: str
    headers: Message


class RecordingFrontend:
    """A frontend that notes each request as it arrives, and then does what ``answer`` does with it."""

    def __init__(self, port: int, answer: Callable[[BaseHTTPRequestHandler], None] | None = None) -> None:
        self.seen: list[Request] = []
        self.connections = 0
        recorder = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                recorder.connections += 1
                recorder._sockets.append(self.connection)

            def do_GET(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                recorder.seen.append(Request(self.command, self.path, self.headers))
                (answer or say_hello)(self)

            do_POST = do_GET  # noqa: N815

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._sockets: list[socket.socket] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.02,)).start()

    def __enter__(self) -> RecordingFrontend:
        return self

    def __exit__(self, *exception: object) -> None:
        """Refuse new connections and cut those that are kept, as the end of a process does."""
        self._server.shutdown()
        for connection in self._sockets:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # closed already
        self._server.server_close()


def say_hello(handler: BaseHTTPRequestHandler, body: bytes = b"hello", content_type: str = "text/plain") -> None:
    handler.send_response(200)
    handler.send_header("Content-Type", content_type)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


@pytest.fixture(params=["myapplication.conf", "standalone.conf"])
def name(request: pytest.FixtureRequest) -> str:
    configuration: str = request.param
    return configuration


@pytest.fixture
def nginx(name: str, tmp_path: Path) -> Iterator[Nginx]:
    with Nginx(name, tmp_path) as server:
        yield server


@pytest.fixture
def frontends(nginx: Nginx) -> Iterator[tuple[RecordingFrontend, RecordingFrontend]]:
    first, second = nginx.frontend_ports
    with RecordingFrontend(first) as one, RecordingFrontend(second) as two:
        yield one, two


def test_configuration_passes_nginx_own_check(name: str, tmp_path: Path) -> None:
    check = subprocess.run(Nginx(name, tmp_path).command("-t"), capture_output=True, text=True, timeout=30, check=False)
    assert "test is successful" in check.stderr
    assert "[warn]" not in check.stderr
    assert check.returncode == 0


def test_static_files_come_from_nginx(nginx: Nginx) -> None:
    # No frontend runs.
    response = HTTP.get(f"{nginx.url}/static/style.css", timeout=10)
    assert response.status_code == 200
    assert response.content == (ROOT / "myapplication" / "static" / "style.css").read_bytes()
    assert response.headers["Content-Type"] == "text/css"
    assert response.headers["Cache-Control"] == "no-cache"
    unchanged = HTTP.get(response.url, headers={"If-None-Match": response.headers["ETag"]}, timeout=10)
    assert unchanged.status_code == 304
    assert HTTP.get(f"{nginx.url}/static/../views.py", timeout=10).status_code != 200


def test_frontend_learns_the_clients_address_scheme_and_host(
    nginx: Nginx, frontends: tuple[RecordingFrontend, RecordingFrontend]
) -> None:
    with socket.create_connection(("127.0.0.1", nginx.port), 10, source_address=("127.0.0.9", 0)) as client:
        client.sendall(
            b"GET /query/?report=orders HTTP/1.1\r\nHost: shop.example:81\r\nConnection: close\r\n"
            b"X-Real-IP: 8.8.8.8\r\nX-Forwarded-For: 8.8.8.8\r\nX-Scheme: https\r\nX-Forwarded-Proto: https\r\n"
            b"X-Request-ID: 8\r\nForwarded: for=8.8.8.8\r\n\r\n"
        )
        assert client.makefile("rb").read().endswith(b"hello")
    [request] = frontends[0].seen + frontends[1].seen
    assert request.path == "/query/?report=orders"
    assert request.headers["Host"] == "shop.example:81"
    assert request.headers["X-Real-IP"] == "127.0.0.9"
    assert request.headers["X-Forwarded-For"] == "8.8.8.8, 127.0.0.9"
    assert request.headers["X-Scheme"] == "http"
    assert request.headers["X-Forwarded-Proto"] == "http"
    assert "Forwarded" not in request.headers
    assert re.fullmatch("[0-9a-f]{32}", request.headers["X-Request-ID"]), "one of nginx's own making"


@pytest.mark.parametrize("source", ["auto", "x-real-ip", "x-forwarded-for"])
def test_what_nginx_says_of_the_client_is_believed(
    nginx: Nginx, frontends: tuple[RecordingFrontend, RecordingFrontend], source: ClientHeaders
) -> None:
    with socket.create_connection(("127.0.0.1", nginx.port), 10, source_address=("127.0.0.9", 0)) as client:
        client.sendall(
            b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nX-Real-IP: 8.8.8.8\r\nX-Scheme: https\r\n\r\n"
        )
        assert client.makefile("rb").read().endswith(b"hello")
    [request] = frontends[0].seen + frontends[1].seen
    headers = HTTPHeaders(dict(request.headers.items()))
    forwarded = ForwardedHeaders((), source)
    assert forwarded.client_of(ClientAddress("127.0.0.1", "https"), headers) == ClientAddress("127.0.0.9", "http")


def test_connections_to_the_frontends_are_kept(
    nginx: Nginx, frontends: tuple[RecordingFrontend, RecordingFrontend]
) -> None:
    for _ in range(10):
        # A connection each on this side of nginx.
        assert requests.Session().get(nginx.url, timeout=10).text == "hello"
    assert [len(frontend.seen) for frontend in frontends] == [5, 5]
    assert [frontend.connections for frontend in frontends] == [1, 1]


def test_wish_for_a_websocket_reaches_the_frontend(
    nginx: Nginx, frontends: tuple[RecordingFrontend, RecordingFrontend]
) -> None:
    HTTP.get(nginx.url, headers={"Connection": "Upgrade", "Upgrade": "websocket"}, timeout=10)
    [request] = frontends[0].seen + frontends[1].seen
    assert request.headers["Upgrade"] == "websocket"
    assert request.headers["Connection"] == "upgrade"


@pytest.mark.parametrize(
    ("upgrade", "passed"), [("WebSocket", "websocket"), ("h2c", None), ("websocket2", None), ("websocket, h2c", None)]
)
def test_clients_upgrade_to_websocket_and_to_nothing_else(
    nginx: Nginx, frontends: tuple[RecordingFrontend, RecordingFrontend], upgrade: str, passed: str | None
) -> None:
    HTTP.get(nginx.url, headers={"Connection": "Upgrade, HTTP2-Settings", "Upgrade": upgrade}, timeout=10)
    [request] = frontends[0].seen + frontends[1].seen
    assert request.headers["Upgrade"] == passed
    assert request.headers["Connection"] == ("upgrade" if passed else None)


def test_a_target_that_names_another_host_is_refused(
    nginx: Nginx, frontends: tuple[RecordingFrontend, RecordingFrontend]
) -> None:
    for target in (b"http://other.example/", b"HTTPS://other.example/static/style.css"):
        with socket.create_connection(("127.0.0.1", nginx.port), 10) as client:
            client.sendall(b"GET " + target + b" HTTP/1.1\r\nHost: shop.example\r\nConnection: close\r\n\r\n")
            assert b" 400 " in client.makefile("rb").readline()
    # It is no such target where it stands in a query.
    assert HTTP.get(f"{nginx.url}/?next=http://other.example/", timeout=10).status_code == 200
    assert [request.path for request in frontends[0].seen + frontends[1].seen] == ["/?next=http://other.example/"]


def test_answers_are_compressed(nginx: Nginx) -> None:
    body = b'{"rows": [' + b"1, " * 1000 + b"1]}"
    with RecordingFrontend(nginx.frontend_ports[0], lambda handler: say_hello(handler, body, "application/json")):
        response = HTTP.get(nginx.url, headers={"Accept-Encoding": "gzip", "Via": "1.1 cache"}, timeout=10)
    assert response.headers["Content-Encoding"] == "gzip"
    assert response.content == body


def test_too_large_a_body_is_refused_before_a_frontend_gets_it(
    nginx: Nginx, frontends: tuple[RecordingFrontend, RecordingFrontend]
) -> None:
    with socket.create_connection(("127.0.0.1", nginx.port), 10) as client:
        client.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 60000000\r\n\r\n")
        assert b" 413 " in client.makefile("rb").readline()
    assert frontends[0].seen + frontends[1].seen == []


def test_requests_go_to_the_other_frontend_while_one_is_down(nginx: Nginx) -> None:
    with RecordingFrontend(nginx.frontend_ports[1]) as frontend:
        assert [HTTP.get(nginx.url, timeout=10).status_code for _ in range(6)] == [200] * 6
        # It was never sent to the one that refused the connection, so a POST can go elsewhere too.
        assert [HTTP.post(nginx.url, b"x", timeout=10).status_code for _ in range(6)] == [200] * 6
        assert len(frontend.seen) == 12


def test_restart_of_one_frontend_after_the_other_loses_no_request(nginx: Nginx) -> None:
    first, second = nginx.frontend_ports
    statuses: list[int] = []

    def ask() -> None:
        # One for each frontend, and one more.
        statuses.extend(HTTP.get(nginx.url, timeout=10).status_code for _ in range(3))

    with ExitStack() as before, ExitStack() as after:
        before.enter_context(RecordingFrontend(second))
        with RecordingFrontend(first):
            ask()
        ask()
        after.enter_context(RecordingFrontend(first))
        before.close()
        ask()
        after.enter_context(RecordingFrontend(second))
        ask()
    assert statuses == [200] * 12


def read_and_close(handler: BaseHTTPRequestHandler) -> None:
    handler.close_connection = True


@pytest.mark.parametrize("kept", [False, True], ids=["new connection", "kept connection"])
def test_post_that_may_have_been_executed_is_never_sent_twice(nginx: Nginx, kept: bool) -> None:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        if handler.command == "GET":
            say_hello(handler)
        else:
            read_and_close(handler)

    first, second = nginx.frontend_ports
    with RecordingFrontend(first, answer) as one, RecordingFrontend(second, answer) as two:
        if kept:
            for _ in range(2):
                HTTP.get(nginx.url, timeout=10)
        response = HTTP.post(nginx.url, b"order", timeout=10)
    assert response.status_code == 502
    assert [request.method for request in one.seen + two.seen].count("POST") == 1


def test_get_whose_frontend_died_is_asked_of_the_other(nginx: Nginx) -> None:
    first, second = nginx.frontend_ports
    with RecordingFrontend(first, read_and_close) as dying, RecordingFrontend(second) as healthy:
        assert [HTTP.get(nginx.url, timeout=10).status_code for _ in range(2)] == [200] * 2
    assert len(dying.seen) == 1
    assert len(healthy.seen) == 2


def test_slow_query_is_not_asked_again_of_the_next_frontend(name: str, tmp_path: Path) -> None:
    done = threading.Event()

    def wait(handler: BaseHTTPRequestHandler) -> None:
        done.wait(30)

    with Nginx(name, tmp_path, {"proxy_read_timeout 200;": "proxy_read_timeout 1;"}) as nginx:
        first, second = nginx.frontend_ports
        with RecordingFrontend(first, wait) as one, RecordingFrontend(second, wait) as two:
            try:
                assert HTTP.get(nginx.url, timeout=10).status_code == 504
                assert len(one.seen + two.seen) == 1
            finally:
                done.set()
