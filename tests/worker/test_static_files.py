"""``static``: files served without the application."""

from __future__ import annotations

import gzip
import http.client
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from wsgiref.types import StartResponse, WSGIEnvironment

import pytest
from tornado.httpserver import HTTPServer as TornadoHTTPServer
from tornado.web import Application, FallbackHandler

from tests.support.inprocess import BridgeThread, wait_until
from threadbridge import Bridge, HTTPServer
from threadbridge.http.preconditions import seconds_of
from threadbridge.telemetry.record import Record

CSS = b"body { color: teal }\n" * 20
PAGE = b"<h1>Manual</h1>"
LARGE = bytes(range(256)) * 4000


def app(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"application {environ['PATH_INFO']}".encode()]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    root = tmp_path / "static"
    (root / "manual").mkdir(parents=True)
    (root / "a.css").write_bytes(CSS)
    (root / "manual" / "index.html").write_bytes(PAGE)
    (root / "large.bin").write_bytes(LARGE)
    (tmp_path / "secret").write_bytes(b"secret")
    return root


@pytest.fixture
def server(directory: Path) -> Iterator[BridgeThread]:
    with BridgeThread(app, threads=1, static=[f"/static/:{directory}"]) as server:
        yield server


def test_a_file_with_its_headers(server: BridgeThread, directory: Path) -> None:
    response, body = server.request(path="/static/a.css?v=1")
    assert (response.status, body) == (200, CSS)
    assert response.headers["Content-Type"] == "text/css"
    assert response.headers["Cache-Control"] == "no-cache"
    assert response.headers["Accept-Ranges"] == "bytes"
    assert response.headers["Vary"] is None
    etag, modified = response.headers["ETag"], response.headers["Last-Modified"]
    for condition in ({"If-None-Match": etag}, {"If-Modified-Since": modified}):
        response, body = server.request(path="/static/a.css", headers=condition)
        assert (response.status, body) == (304, b"")
        assert response.headers["ETag"] == etag
        assert response.headers["Cache-Control"] == "no-cache"
        assert response.headers["Content-Type"] is None
    (directory / "a.css").write_bytes(CSS + b"/**/")
    response, body = server.request(path="/static/a.css", headers={"If-None-Match": etag})
    assert (response.status, body) == (200, CSS + b"/**/")


def test_other_paths_are_the_applications(server: BridgeThread) -> None:
    for path in ("/", "/static", "/staticx/a.css", "/other/static/a.css"):
        assert server.request(path=path)[1] == f"application {path}".encode()


@pytest.mark.parametrize("size", [len(CSS), len(LARGE)])
def test_ranges_and_heads(server: BridgeThread, size: int) -> None:
    path, content = ("/static/a.css", CSS) if size == len(CSS) else ("/static/large.bin", LARGE)
    response, body = server.request(path=path, headers={"Range": "bytes=5-"})
    assert (response.status, body) == (206, content[5:])
    assert response.headers["Content-Range"] == f"bytes 5-{size - 1}/{size}"
    response, body = server.request(path=path, headers={"Range": f"bytes={size}-"})
    assert response.status == 416 and response.headers["Content-Range"] == f"bytes */{size}"
    response, body = server.request("HEAD", path, headers={"Range": "bytes=5-"})
    assert (response.status, body) == (200, b"") and response.headers["Content-Length"] == str(size)
    response, _ = server.request(path=path, headers={"If-Match": '"other"'})
    assert response.status == 412


def test_other_methods_are_refused(server: BridgeThread) -> None:
    response, _ = server.request("POST", "/static/a.css", body=b"x")
    assert response.status == 405 and response.headers["Allow"] == "GET, HEAD, OPTIONS"
    response, _ = server.request("OPTIONS", "/static/a.css")
    assert response.status == 204 and response.headers["Allow"] == "GET, HEAD, OPTIONS"


def test_names_with_a_hash_are_kept_for_ever(server: BridgeThread, directory: Path) -> None:
    kept = ["app.55e7cbb9ba48.css", "app-0a1b2c3d.js", "font.3f2504e04f8941d39a0c0305e82c3301.woff2"]
    # A date, a word, and no hash at all.
    checked = ["report-20260131.pdf", "jquery-deadbeef.js", "app.min.js"]
    for name in (*kept, *checked):
        (directory / name).write_bytes(b"x")
        response, _ = server.request(path=f"/static/{name}")
        is_kept = response.headers["Cache-Control"] == "public, max-age=31536000, immutable"
        assert is_kept == (name in kept), name


@pytest.mark.parametrize(
    ("accepted", "coding"),
    [
        ("gzip, deflate, br", "br"),
        ("gzip", "gzip"),
        ("br;q=0, gzip;q=0.5", "gzip"),
        ("*", "br"),
        ("*;q=0, gzip", "gzip"),
        ("deflate", None),
        ("gzip; q=0.000", None),
        ("", None),
    ],
)
def test_compressed_copies(server: BridgeThread, directory: Path, accepted: str, coding: str | None) -> None:
    plain = server.request(path="/static/a.css")[0].headers["ETag"]
    compressed = {"gzip": gzip.compress(CSS), "br": b"not really brotli"}
    (directory / "a.css.gz").write_bytes(compressed["gzip"])
    (directory / "a.css.br").write_bytes(compressed["br"])
    response, body = server.request(path="/static/a.css", headers={"Accept-Encoding": accepted})
    assert response.headers["Content-Encoding"] == coding
    assert body == (CSS if coding is None else compressed[coding])
    assert response.headers["Vary"] == "Accept-Encoding"
    assert response.headers["Content-Type"] == "text/css"
    assert (response.headers["ETag"] == plain) == (coding is None)
    again = {"Accept-Encoding": accepted, "If-None-Match": response.headers["ETag"]}
    response, _ = server.request(path="/static/a.css", headers=again)
    assert response.status == 304 and response.headers["Vary"] == "Accept-Encoding"


def test_copies_of_the_same_size_and_age_have_their_own_tags(server: BridgeThread, directory: Path) -> None:
    for suffix in ("", ".gz", ".br"):
        (directory / f"a.css{suffix}").write_bytes(CSS)
        os.utime(directory / f"a.css{suffix}", (1_600_000_000, 1_600_000_000))
    accepted = ("", "gzip", "br")
    responses = [server.request(path="/static/a.css", headers={"Accept-Encoding": each})[0] for each in accepted]
    assert len({response.headers["ETag"] for response in responses}) == 3


def test_a_copy_older_than_its_original_is_not_sent(server: BridgeThread, directory: Path) -> None:
    copy = directory / "a.css.gz"
    copy.write_bytes(gzip.compress(b"old"))
    os.utime(copy, (1_600_000_000, 1_600_000_000))
    response, body = server.request(path="/static/a.css", headers={"Accept-Encoding": "gzip"})
    assert body == CSS and response.headers["Content-Encoding"] is None
    # The copy by its own name is a file like others.
    response, body = server.request(path="/static/a.css.gz")
    assert gzip.decompress(body) == b"old" and response.headers["Content-Type"] == "application/gzip"


def test_the_index_of_a_directory(server: BridgeThread) -> None:
    assert server.request(path="/static/manual/")[1] == PAGE
    response, _ = server.request(path="/static/manual?page=2")
    assert response.status == 301 and response.headers["Location"] == "/static/manual/?page=2"
    for path in ("/static/", "/static/a.css/", "/static/manual/index.html/"):
        assert server.request(path=path)[0].status == 404, path


def test_what_is_not_served(server: BridgeThread, directory: Path) -> None:
    (directory / "out").symlink_to(directory.parent / "secret")
    (directory / "outside").symlink_to(directory.parent)
    (directory / ".env").write_bytes(b"secret")
    (directory / ".git").mkdir()
    (directory / ".git" / "config").write_bytes(b"secret")
    os.mkfifo(directory / "pipe")
    answers = {}
    for name in (
        *("missing.css", 300 * "a", "a.css%00"),
        *("../secret", "%2e%2e/secret", "..%2fsecret", "manual/../../secret", "manual/../a.css"),
        *("/etc/passwd", "%2fetc/passwd", f"{directory}/a.css"),
        *("out", "outside/secret", ".env", ".git/config", "pipe"),
    ):
        request = f"GET /static/{name} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        answer = server.exchange(request.encode())
        assert b"secret" not in answer and b"root:" not in answer and CSS not in answer, name
        answers[name] = answer.split(b" ", 2)[1]
    assert answers == dict.fromkeys(answers, b"404") | {"pipe": b"403"}


def test_no_client_can_forge_a_line_of_the_log(
    server: BridgeThread, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (directory / "outside").symlink_to(directory.parent)
    assert server.request(path="/static/outside/%0Aforged")[0].status == 404
    [line] = [record.getMessage() for record in caplog.records if "is not served" in record.getMessage()]
    assert "outside/\\nforged' leads out of" in line


def test_a_link_that_takes_the_place_of_a_directory_meanwhile_leads_nowhere(
    server: BridgeThread, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outside = directory.parent / "outside"
    outside.mkdir()
    (outside / "index.html").write_bytes(b"secret")
    resolve = os.path.realpath

    def resolve_and_replace(path: str) -> str:
        resolved = resolve(path)
        if resolved.endswith("manual/index.html"):
            (directory / "manual").rename(directory / "old")
            (directory / "manual").symlink_to(outside)
        return resolved

    monkeypatch.setattr(os.path, "realpath", resolve_and_replace)
    response, body = server.request(path="/static/manual/index.html")
    assert (directory / "manual").is_symlink()
    assert response.status == 404 and b"secret" not in body


def test_a_file_from_the_future_was_modified_now(server: BridgeThread, directory: Path) -> None:
    os.utime(directory / "a.css", (4_000_000_000, 4_000_000_000))
    response, _ = server.request(path="/static/a.css")
    modified, date = (seconds_of(response.headers[name]) for name in ("Last-Modified", "Date"))
    assert modified is not None and date is not None and modified <= date


def test_links_within_the_directory_and_of_the_directory_are_followed(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text(name)
        (tmp_path / name / "link.txt").symlink_to("a.txt")
    current = tmp_path / "current"
    current.symlink_to("one")
    (tmp_path / "one" / ".well-known").mkdir()
    (tmp_path / "one" / ".well-known" / "security.txt").write_text("ours")
    with BridgeThread(app, threads=1, static=[f"/s/:{current}"]) as server:
        assert server.request(path="/s/link.txt")[1] == b"one"
        assert server.request(path="/s/.well-known/security.txt")[1] == b"ours"
        # As a deployment does it.
        (tmp_path / "new").symlink_to("two")
        (tmp_path / "new").rename(current)
        assert server.request(path="/s/link.txt")[1] == b"two"


def test_names_beyond_ascii(server: BridgeThread, directory: Path) -> None:
    (directory / "Größe 1.txt").write_bytes(b"42")
    assert server.request(path="/static/Gr%C3%B6%C3%9Fe%201.txt")[1] == b"42"


def test_files_are_served_while_every_thread_of_the_application_is_busy(directory: Path) -> None:
    gate, entered = threading.Event(), threading.Event()

    def waiting(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        entered.set()
        assert gate.wait(60)
        return app(environ, start_response)

    with BridgeThread(waiting, threads=1, static=[f"/static/:{directory}"]) as server:
        records: list[Record] = []
        server.bridge.telemetry.subscribe(records.extend)
        client = server.send(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert entered.wait(30)
        assert server.request(path="/static/large.bin")[1] == LARGE
        gate.set()
        with client:
            assert client.recv(100).startswith(b"HTTP/1.1 200")
        wait_until(lambda: len(records) == 2, "both are recorded")
        by_target = {record.target: record for record in records}
        assert by_target["/static/large.bin"].lane == "static"
        assert by_target["/static/large.bin"].sent == len(LARGE)
        assert by_target["/"].lane == "default"


def test_below_a_url_prefix(directory: Path) -> None:
    settings: dict[str, Any] = {"threads": 1, "root_path": "/shop", "static": [f"/static/:{directory}"]}
    with BridgeThread(app, **settings) as server:
        assert server.request(path="/shop/static/a.css")[1] == CSS
        assert server.request(path="/static/a.css")[1] == CSS
        response, _ = server.request(path="/shop/static/manual")
        assert response.headers["Location"] == "/shop/static/manual/"
        assert server.request(path="/shop/other")[1] == b"application /other"


def _own_server(bridge: Bridge) -> TornadoHTTPServer:
    return TornadoHTTPServer(bridge)


def _fallback(bridge: Bridge) -> TornadoHTTPServer:
    return HTTPServer(Application([(".*", FallbackHandler, {"fallback": bridge})]))


@pytest.mark.parametrize("make_server", [_own_server, _fallback])
def test_in_programs_with_other_servers(make_server: Any, directory: Path) -> None:
    with BridgeThread(app, make_server, threads=1, static=[f"/static/:{directory}"]) as server:
        assert server.request(path="/static/large.bin")[1] == LARGE
        assert server.request(path="/static/large.bin", headers={"Range": "bytes=9-99"})[1] == LARGE[9:100]
        assert server.request("HEAD", "/static/a.css")[0].headers["Content-Length"] == str(len(CSS))
        assert server.request(path="/x")[1] == b"application /x"


def test_one_connection_carries_files_and_answers_of_the_application(server: BridgeThread) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    local: set[socket.socket | None] = set()
    for path, expected in 2 * [("/static/large.bin", LARGE), ("/x", b"application /x"), ("/static/a.css", CSS)]:
        connection.request("GET", path)
        assert connection.getresponse().read() == expected
        local.add(connection.sock)
    assert len(local) == 1
    connection.close()


def test_directories_that_do_not_exist_are_refused(tmp_path: Path) -> None:
    missing = [f"/a/:{tmp_path}/no"]
    with pytest.raises(ValueError, match=f"static: there is no directory {tmp_path}/no; create it"):
        Bridge(app, threads=1, static=missing)
    with pytest.raises(ValueError, match="x_accel_redirect: there is no directory"):
        Bridge(app, threads=1, x_accel_redirect=missing)
    with pytest.raises(ValueError, match="x_sendfile: there is no directory"):
        Bridge(app, threads=1, x_sendfile=[f"{tmp_path}/no"])
    for wrong in ("/a:/tmp", "a/:/tmp", "/:/tmp", "/a/", "/a/../:/tmp", "//a/:/tmp"):
        with pytest.raises(ValueError, match="expected /PREFIX/:DIRECTORY"):
            Bridge(app, threads=1, static=[wrong])
