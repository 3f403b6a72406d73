"""``X-Sendfile`` and ``X-Accel-Redirect``: the application names a file, and the server sends it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import quote
from wsgiref.types import StartResponse, WSGIEnvironment

import pytest
from flask import Flask, Response, send_file

from tests.support.inprocess import BridgeThread, wait_until
from threadbridge.telemetry.record import Record

CONTENT = bytes(range(256)) * 4000
SMALL = b"small"


class Naming:
    """Answers with the headers that are set here, and notes what becomes of its result."""

    def __init__(self) -> None:
        self.headers: list[tuple[str, str]] = []
        self.status = "200 OK"
        self.body: list[bytes] = [b"the application's"]
        self.closed = threading.Event()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response(self.status, [("Content-Length", str(sum(map(len, self.body)))), *self.headers])
        naming = self

        class Result:
            def __iter__(self) -> Iterator[bytes]:
                return iter(naming.body)

            def close(self) -> None:
                naming.closed.set()

        return Result()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    root = tmp_path / "files"
    root.mkdir()
    (root / "report.pdf").write_bytes(CONTENT)
    (root / "small.txt").write_bytes(SMALL)
    (root / "100% ä.txt").write_bytes(b"odd")
    (tmp_path / "secret").write_bytes(b"secret")
    (root / "out").symlink_to(tmp_path / "secret")
    return root


@pytest.fixture
def app() -> Naming:
    return Naming()


@pytest.fixture
def server(app: Naming, directory: Path) -> Iterator[BridgeThread]:
    mounts = [f"/protected/:{directory}"]
    with BridgeThread(app, threads=1, x_sendfile=[str(directory)], x_accel_redirect=mounts) as server:
        yield server


def named(kind: str, directory: Path, name: str) -> tuple[str, str]:
    """The header that names a file of the directory."""
    return ("X-Sendfile", f"{directory}/{name}") if kind == "path" else ("X-Accel-Redirect", f"/protected/{name}")


BOTH = pytest.mark.parametrize("kind", ["path", "url"])


@BOTH
@pytest.mark.parametrize(("name", "content"), [("report.pdf", CONTENT), ("small.txt", SMALL)])
def test_the_file_replaces_the_body(
    app: Naming, server: BridgeThread, directory: Path, kind: str, name: str, content: bytes
) -> None:
    own = [("Content-Type", "application/pdf"), ("Content-Disposition", "attachment"), ("Cache-Control", "private")]
    app.headers = [*own, ("Set-Cookie", "a=1"), ("Set-Cookie", "b=2"), named(kind, directory, name)]
    response, body = server.request()
    assert (response.status, body) == (200, content)
    for header, value in own:
        assert response.headers.get_all(header) == [value]
    assert response.headers.get_all("Set-Cookie") == ["a=1", "b=2"]
    assert response.headers.get_all("Content-Length") == [str(len(content))]
    assert response.headers["X-Sendfile"] is None and response.headers["X-Accel-Redirect"] is None
    assert app.closed.wait(30)
    etag = response.headers["ETag"]
    response, body = server.request(headers={"If-None-Match": etag})
    assert (response.status, body) == (304, b"")
    assert response.headers.get_all("Set-Cookie") == ["a=1", "b=2"] and response.headers["Content-Type"] is None
    response, body = server.request(headers={"Range": "bytes=2-3", "If-Range": etag})
    assert (response.status, body) == (206, content[2:4])
    assert response.headers["Content-Disposition"] == "attachment"
    response, body = server.request("HEAD")
    assert (response.status, body) == (200, b"") and response.headers["Content-Length"] == str(len(content))


def test_the_file_replaces_one_that_the_application_returns(directory: Path) -> None:
    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [named("path", directory, "small.txt")])
        wrapped: Iterable[bytes] = environ["wsgi.file_wrapper"]((directory / "report.pdf").open("rb"))
        return wrapped

    with BridgeThread(app, threads=1, x_sendfile=[str(directory)]) as server:
        assert server.request()[1] == SMALL


def test_the_applications_validators_count(app: Naming, server: BridgeThread, directory: Path) -> None:
    date = "Sun, 06 Nov 1994 08:49:37 GMT"
    app.headers = [named("path", directory, "report.pdf"), ("ETag", '"v1"'), ("Last-Modified", date)]
    response, _ = server.request(headers={"If-None-Match": '"v1"'})
    assert response.status == 304
    response, _ = server.request(headers={"If-Modified-Since": date})
    assert response.status == 304 and response.headers.get_all("Last-Modified") == [date]
    app.headers.append(("Accept-Ranges", "none"))
    response, body = server.request(headers={"Range": "bytes=0-1"})
    assert (response.status, body) == (200, CONTENT) and response.headers["Accept-Ranges"] == "none"


def test_conditions_do_not_count_for_other_methods_and_statuses(
    app: Naming, server: BridgeThread, directory: Path
) -> None:
    app.headers = [named("path", directory, "small.txt")]
    # It has run already.
    response, body = server.request("POST", headers={"If-Match": '"x"', "Range": "bytes=0-1"})
    assert (response.status, body) == (200, SMALL)
    app.status = "404 Gone Fishing"
    response, body = server.request(headers={"If-Match": '"x"', "Range": "bytes=0-1"})
    assert (response.status, response.reason, body) == (404, "Gone Fishing", SMALL)
    app.status, app.body = "304 Not Modified", []
    response, body = server.request()
    assert (response.status, body) == (304, b"") and response.headers["X-Sendfile"] is None


@pytest.mark.parametrize("how", ["literally", "quoted"])
def test_odd_names(app: Naming, server: BridgeThread, directory: Path, how: str) -> None:
    name = "100% ä.txt"
    path = f"{directory}/{name}"
    app.headers = [("X-Sendfile", quote(path) if how == "quoted" else path.encode().decode("latin-1"))]
    assert server.request()[1] == b"odd"
    app.headers = [("X-Accel-Redirect", f"/protected/{quote(name)}?x=1")]
    assert server.request()[1] == b"odd"


@BOTH
@pytest.mark.parametrize("name", ["../secret", "out", "../../../../etc/passwd", "%2e%2e/secret"])
def test_nothing_outside_is_sent(
    app: Naming, server: BridgeThread, directory: Path, kind: str, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    app.headers = [named(kind, directory, name), ("Set-Cookie", "a=1")]
    response, body = server.request()
    assert response.status == 500 and b"secret" not in body and b"application's" not in body
    [message] = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert name in message and str(directory) in message and "Traceback" not in caplog.text
    # The thread goes on.
    app.headers = []
    assert server.request()[1] == b"the application's"


@BOTH
@pytest.mark.parametrize("name", ["missing", "small.txt/x", ".", "a%00b"])
def test_a_missing_file_is_not_found(
    app: Naming, server: BridgeThread, directory: Path, kind: str, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    app.headers = [named(kind, directory, name), ("Content-Type", "application/pdf"), ("Set-Cookie", "a=1")]
    response, body = server.request()
    assert (response.status, body) == (404, b"404 Not Found\n")
    assert response.headers.get_all("Content-Type") == ["text/plain; charset=utf-8"]
    assert response.headers["Set-Cookie"] == "a=1"
    assert name in caplog.text


@pytest.mark.parametrize(
    ("header", "advice"),
    [
        (("X-Accel-Redirect", "/other/report.pdf"), "x_accel_redirect has a directory only for /protected/"),
        (("X-Sendfile", "/etc/passwd"), "x_sendfile allows only files below"),
    ],
)
def test_paths_for_which_there_is_no_setting(
    app: Naming, server: BridgeThread, header: tuple[str, str], advice: str, caplog: pytest.LogCaptureFixture
) -> None:
    app.headers = [header]
    assert server.request()[0].status == 500 and advice in caplog.text


def test_without_the_settings_the_headers_are_the_proxys(app: Naming, directory: Path) -> None:
    app.headers = [named("path", directory, "report.pdf"), named("url", directory, "report.pdf")]
    with BridgeThread(app, threads=1) as server:
        response, body = server.request()
        assert body == b"the application's"
        assert [response.headers[name] for name, _ in app.headers] == [value for _, value in app.headers]
    # Each of the two has its own.
    with BridgeThread(app, threads=1, x_accel_redirect=[f"/protected/:{directory}"]) as server:
        app.headers = [named("path", directory, "report.pdf")]
        response, body = server.request()
        assert body == b"the application's" and response.headers["X-Sendfile"] == f"{directory}/report.pdf"


def test_a_worker_is_free_while_clients_download(app: Naming, directory: Path) -> None:
    content = bytes(range(256)) * 40_000
    (directory / "report.pdf").write_bytes(content)
    app.headers = [named("path", directory, "report.pdf")]
    with BridgeThread(app, threads=1, x_sendfile=[str(directory)]) as server:
        records: list[Record] = []
        server.bridge.telemetry.subscribe(records.extend)
        clients = [server.send(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n") for _ in range(2)]
        for client in clients:
            assert client.recv(12) == b"HTTP/1.1 200"
        wait_until(lambda: server.bridge.lanes[-1].busy == 0, "the thread is free")
        app.headers = []
        assert server.request()[1] == b"the application's"
        assert server.bridge.spool.taken == 0
        wait_until(lambda: len(server.bridge.exchanges.open) == 2, "only the downloads are open")
        for client in clients:
            with client:
                received = bytearray()
                while piece := client.recv(1 << 20):
                    received += piece
                assert received.endswith(content)
        wait_until(lambda: len(records) == 3, "all are recorded")
        assert [record.sent for record in records].count(len(content)) == 2


@pytest.mark.parametrize(
    ("headers", "status", "content"),
    [
        ({}, 200, CONTENT),
        ({"Range": "bytes=10-19"}, 206, CONTENT[10:20]),
        ({"Range": "bytes=10-19", "If-Range": '"other"'}, 200, CONTENT),
        ({"Range": "bytes=99999999-"}, 416, None),
        ({"If-None-Match": "*"}, 304, b""),
    ],
)
def test_flasks_send_file(directory: Path, headers: dict[str, str], status: int, content: bytes | None) -> None:
    flask = Flask(__name__)
    flask.config["USE_X_SENDFILE"] = True

    @flask.route("/")
    def report() -> Response:
        return send_file(directory / "report.pdf", as_attachment=True)

    with BridgeThread(flask, threads=1, x_sendfile=[str(directory)]) as server:
        response, body = server.request(headers=headers)
        assert response.status == status
        assert content is None or body == content
        if status < 300:
            assert response.headers["Content-Disposition"] == "attachment; filename=report.pdf"
            assert response.headers["X-Sendfile"] is None
            assert response.headers.get_all("Accept-Ranges") == ["bytes"]
        if status == 206:
            # Flask has evaluated the range, too.
            assert response.headers.get_all("Content-Range") == [f"bytes 10-19/{len(CONTENT)}"]
