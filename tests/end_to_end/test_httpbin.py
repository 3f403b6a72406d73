"""httpbin, an application made to try out HTTP clients, served by the bridge and driven by real clients."""

from __future__ import annotations

import base64
import gzip
import http.client
import importlib.resources
import json
import random
import subprocess
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
from requests.auth import AuthBase, HTTPBasicAuth, HTTPDigestAuth

from tests.support.inprocess import wait_until
from tests.support.processes import Frontend

THREADS = 10
SERVE = ("-m", "threadbridge", "httpbin:app", f"--threads={THREADS}", "--port={port}")
TIMEOUT = 20


@pytest.fixture(scope="module")
def server() -> Iterator[Frontend]:
    with Frontend(SERVE) as frontend:
        yield frontend
        assert frontend.stop() == 0


@pytest.fixture
def session(server: Frontend) -> Iterator[requests.Session]:
    with requests.Session() as session:
        yield session


def alphabet(first: int, last: int) -> bytes:
    """The bytes of /range, from one position to another, both included."""
    return bytes(ord("a") + position % 26 for position in range(first, last + 1))


def curl(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        ["curl", "--silent", "--show-error", "--noproxy", "*", "--max-time", str(TIMEOUT), *arguments],
        check=True,
        capture_output=True,
    )


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
def test_what_a_client_sends_arrives(server: Frontend, method: str) -> None:
    url = f"{server.url}/anything/p%C3%A4th%20and/more?q=%C3%BC&q=2&empty="
    headers = {"X-Thing": "5", "Content-Type": "application/json"}
    answer = requests.request(method, url, data=b'{"a": [1, 2]}', headers=headers, timeout=TIMEOUT).json()
    assert answer["method"] == method
    assert answer["args"] == {"q": ["ü", "2"], "empty": ""}
    assert answer["url"] == f"{server.url}/anything/päth%20and/more?q=ü&q=2&empty="
    assert answer["headers"]["X-Thing"] == "5"
    assert answer["headers"]["Host"] == server.url.removeprefix("http://")
    assert answer["origin"] == "127.0.0.1"
    assert answer["json"] == {"a": [1, 2]}


def test_a_form_and_files_are_uploaded(server: Frontend) -> None:
    picture = random.Random(1).randbytes(3_000_000)
    answer = requests.post(
        f"{server.url}/post",
        data={"name": "ü", "several": ["1", "2"]},
        files={"text": ("a.txt", b"plain text", "text/plain"), "picture": ("b.bin", picture, "image/x-test")},
        timeout=TIMEOUT,
    ).json()
    assert answer["form"] == {"name": "ü", "several": ["1", "2"]}
    assert answer["files"]["text"] == "plain text"
    kind, _, encoded = answer["files"]["picture"].partition(";base64,")
    assert kind == "data:image/x-test"
    assert base64.b64decode(encoded) == picture


@pytest.mark.parametrize("chunks", [1, 3, 200])
def test_an_upload_of_unknown_length_arrives_whole(server: Frontend, chunks: int) -> None:
    def parts() -> Iterator[bytes]:
        for number in range(chunks):
            yield f"{number:08d}".encode() * 1500

    answer = requests.post(f"{server.url}/post", data=parts(), timeout=TIMEOUT)
    assert answer.status_code == 200
    assert answer.json()["data"].encode() == b"".join(parts())


def test_curl_waits_for_the_leave_to_send_and_gets_it(server: Frontend, tmp_path: Path) -> None:
    body = tmp_path / "body"
    body.write_bytes(b"0123456789" * 100_000)
    sent = curl(
        "--verbose", "--header", "Expect: 100-continue", "--data-binary", f"@{body}", f"{server.url}/put", "-XPUT"
    )
    log = sent.stderr.decode()
    assert log.index("> Expect: 100-continue") < log.index("< HTTP/1.1 100 Continue") < log.index("< HTTP/1.1 200 OK")
    [(name, value)] = json.loads(sent.stdout)["form"].items()
    assert (name + value).encode() == body.read_bytes()


@pytest.mark.parametrize(
    ("path", "encoding", "decode"),
    [("/gzip", "gzip", gzip.decompress), ("/deflate", "deflate", zlib.decompress), ("/brotli", "br", None)],
)
def test_an_encoded_body_is_passed_on_as_it_is(server: Frontend, path: str, encoding: str, decode: Any) -> None:
    with requests.get(server.url + path, stream=True, timeout=TIMEOUT) as response:
        raw = response.raw.read(decode_content=False)
    assert response.headers["Content-Encoding"] == encoding
    assert response.headers["Content-Length"] == str(len(raw))
    assert b"headers" not in raw
    decoded = requests.get(server.url + path, timeout=TIMEOUT).content if decode is None else decode(raw)
    assert json.loads(decoded)["method"] == "GET"


def test_a_stream_of_lines(server: Frontend) -> None:
    with requests.get(f"{server.url}/stream/100", stream=True, timeout=TIMEOUT) as response:
        assert response.headers["Transfer-Encoding"] == "chunked"
        assert [json.loads(line)["id"] for line in response.iter_lines()] == list(range(100))


def test_a_stream_for_a_client_that_knows_no_chunks(server: Frontend) -> None:
    got = curl("--http1.0", "--include", f"{server.url}/stream/20")
    head, _, body = got.stdout.partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head.lower()
    assert [json.loads(line)["id"] for line in body.splitlines()] == list(range(20))


def test_dripping_bytes_arrive_one_by_one(server: Frontend) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=TIMEOUT)
    connection.request("GET", "/drip?numbytes=3&duration=1.5&code=203")
    response = connection.getresponse()
    assert (response.status, response.headers["Content-Length"]) == (203, "3")
    assert len(response.read1()) < 3
    assert len(response.read()) > 0
    connection.close()


def test_a_client_that_leaves_frees_its_thread(server: Frontend) -> None:
    for _ in range(2):
        leaving = []
        # One thread is kept for short requests.
        for _ in range(THREADS - 1):
            # A byte every hundredth of a second, for an hour.
            url = f"{server.url}/drip?numbytes=360000&duration=3600"
            response = requests.get(url, stream=True, timeout=TIMEOUT)
            assert response.raw.read(1) == b"*"
            leaving.append(response)
        for response in leaving:
            response.close()
        assert requests.get(f"{server.url}/get", timeout=TIMEOUT).status_code == 200


@pytest.mark.parametrize(
    ("asked", "first", "last"),
    [(None, 0, 99_999), ("bytes=10-20", 10, 20), ("bytes=99990-", 99_990, 99_999), ("bytes=-5", 99_995, 99_999)],
)
def test_a_range(server: Frontend, asked: str | None, first: int, last: int) -> None:
    headers = {"Range": asked} if asked else {}
    response = requests.get(f"{server.url}/range/100000?chunk_size=777", headers=headers, timeout=TIMEOUT)
    assert response.status_code == (206 if asked else 200)
    assert response.headers["Content-Range"] == f"bytes {first}-{last}/100000"
    assert response.headers["Content-Length"] == str(last + 1 - first)
    assert response.headers["ETag"] == "range100000"
    assert response.content == alphabet(first, last)


def test_a_range_beyond_the_end(server: Frontend) -> None:
    response = requests.get(f"{server.url}/range/100", headers={"Range": "bytes=200-"}, timeout=TIMEOUT)
    assert (response.status_code, response.headers["Content-Range"]) == (416, "bytes */100")
    assert response.content == b""


def test_curl_goes_on_with_a_download(server: Frontend, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(alphabet(0, 39_999))
    curl("--continue-at", "-", "--output", str(file), f"{server.url}/range/100000")
    assert file.read_bytes() == alphabet(0, 99_999)


def test_cookies_live_in_a_session(server: Frontend, session: requests.Session) -> None:
    set_two = session.get(f"{server.url}/cookies/set?a=1&b=2", allow_redirects=False, timeout=TIMEOUT)
    assert set_two.raw.headers.getlist("Set-Cookie") == ["a=1; Path=/", "b=2; Path=/"]
    assert session.get(f"{server.url}/cookies/set/c/3", timeout=TIMEOUT).json()["cookies"] == {
        "a": "1",
        "b": "2",
        "c": "3",
    }
    assert session.get(f"{server.url}/cookies/delete?a&c", timeout=TIMEOUT).json()["cookies"] == {"b": "2"}


@pytest.mark.parametrize("kind", ["redirect", "relative-redirect", "absolute-redirect"])
def test_redirects_lead_to_the_end(server: Frontend, session: requests.Session, kind: str) -> None:
    response = session.get(f"{server.url}/{kind}/5", timeout=TIMEOUT)
    assert [step.status_code for step in response.history] == [302] * 5
    assert all(step.headers["Location"].startswith("/") == (kind != "absolute-redirect") for step in response.history)
    assert response.json()["url"] == f"{server.url}/get"


@pytest.mark.parametrize(("status", "method"), [(303, "GET"), (307, "POST")])
def test_a_redirected_upload(server: Frontend, session: requests.Session, status: int, method: str) -> None:
    where = {"url": f"{server.url}/anything", "status_code": str(status)}
    response = session.post(f"{server.url}/redirect-to", params=where, data=b"x" * 200_000, timeout=TIMEOUT)
    assert [step.status_code for step in response.history] == [status]
    assert response.json()["method"] == method
    assert len(response.json()["data"]) == (200_000 if method == "POST" else 0)


CODES = [
    *range(200, 206),
    206,
    226,
    299,
    *range(300, 309),
    *range(400, 407),
    *range(408, 432),
    451,
    499,
    *range(500, 512),
]


@pytest.mark.parametrize("method", ["GET", "POST", "HEAD"])
def test_every_status_leaves_the_connection_usable(server: Frontend, method: str) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=TIMEOUT)
    connection.connect()
    socket = connection.sock
    for code in CODES:
        connection.request(method, f"/status/{code}")
        response = connection.getresponse()
        assert response.status == code
        body = response.read()
        if code in (204, 304):
            assert "Content-Length" not in response.headers and "Transfer-Encoding" not in response.headers
        if method == "HEAD" or code in (204, 304):
            assert body == b""
        else:
            assert response.headers["Content-Length"] == str(len(body))
        assert connection.sock is socket
    connection.close()


@pytest.mark.parametrize(
    ("code", "answered", "logged"),
    [
        (100, 500, "the status is '100 CONTINUE'"),
        (600, 600, '"GET /status/600 HTTP/1.1" 600 '),
        (407, 407, "sets the header Proxy-Authenticate"),
    ],
)
def test_what_an_application_should_not_answer_is_logged(
    server: Frontend, code: int, answered: int, logged: str
) -> None:
    response = requests.get(f"{server.url}/status/{code}", timeout=TIMEOUT)
    assert response.status_code == answered and "Proxy-Authenticate" not in response.headers
    wait_until(lambda: logged in server.output(), "it is logged")


def test_conditional_requests(server: Frontend, session: requests.Session) -> None:
    def get(path: str, **headers: str) -> requests.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return session.get(server.url + path, headers=named, timeout=TIMEOUT)

    fresh = get("/cache")
    assert fresh.status_code == 200 and fresh.headers["Last-Modified"]
    assert get("/cache", If_Modified_Since=fresh.headers["Last-Modified"]).status_code == 304
    not_modified = get("/etag/e1", If_None_Match='"e1"')
    assert (not_modified.status_code, not_modified.headers["ETag"], not_modified.content) == (304, "e1", b"")
    assert get("/etag/e1", If_None_Match='"e2"').json()["headers"]["If-None-Match"] == '"e2"'
    assert get("/etag/e1", If_Match='"e2"').status_code == 412
    assert get("/cache/60").headers["Cache-Control"] == "public, max-age=60"


@pytest.mark.parametrize(
    ("path", "auth"),
    [
        ("/basic-auth/joe/sec:ret", HTTPBasicAuth("joe", "sec:ret")),
        ("/digest-auth/auth/joe/secret/MD5", HTTPDigestAuth("joe", "secret")),
        ("/digest-auth/auth/joe/secret/SHA-256", HTTPDigestAuth("joe", "secret")),
    ],
)
def test_authentication(server: Frontend, session: requests.Session, path: str, auth: AuthBase) -> None:
    refused = session.get(server.url + path, timeout=TIMEOUT)
    assert refused.status_code == 401
    assert refused.headers["WWW-Authenticate"].lower().startswith(path[1:].partition("-")[0])
    admitted = session.get(server.url + path, auth=auth, timeout=TIMEOUT)
    assert (admitted.status_code, admitted.json()) == (200, {"authenticated": True, "user": "joe"})


def test_a_bearer_token(server: Frontend) -> None:
    assert requests.get(f"{server.url}/bearer", timeout=TIMEOUT).status_code == 401
    admitted = requests.get(f"{server.url}/bearer", headers={"Authorization": "Bearer t0ken"}, timeout=TIMEOUT)
    assert admitted.json() == {"authenticated": True, "token": "t0ken"}


def test_response_headers_as_asked_for(server: Frontend) -> None:
    url = f"{server.url}/response-headers?X-One=1&X-Two=a&X-Two=b"
    response = requests.get(url, timeout=TIMEOUT)
    assert response.headers["X-One"] == "1"
    assert response.raw.headers.getlist("X-Two") == ["a", "b"]


@pytest.mark.parametrize("size", [0, 1, 65_536, 102_400])
@pytest.mark.parametrize("path", ["/bytes/{}?seed=7", "/stream-bytes/{}?seed=7&chunk_size=999"])
def test_bytes_in_one_piece_and_in_many(server: Frontend, path: str, size: int) -> None:
    response = requests.get(server.url + path.format(size), timeout=TIMEOUT)
    source = random.Random(7)
    assert response.content == bytes(source.randint(0, 255) for _ in range(size))
    if path.startswith("/bytes"):
        assert response.headers["Content-Length"] == str(size)
    assert response.headers["Content-Type"] == "application/octet-stream"


def test_documents_and_pictures(server: Frontend, session: requests.Session) -> None:
    package = importlib.resources.files("httpbin")
    for path, kind, file in [
        ("/image/png", "image/png", "templates/images/pig_icon.png"),
        ("/image/jpeg", "image/jpeg", "templates/images/jackal.jpg"),
        ("/image/webp", "image/webp", "templates/images/wolf_1.webp"),
        ("/image/svg", "image/svg+xml", "templates/images/svg_logo.svg"),
        ("/encoding/utf8", "text/html; charset=utf-8", "templates/UTF-8-demo.txt"),
        ("/html", "text/html; charset=utf-8", "templates/moby.html"),
        ("/static/favicon.ico", None, "static/favicon.ico"),
    ]:
        response = session.get(server.url + path, timeout=TIMEOUT)
        assert response.content.strip() == package.joinpath(file).read_bytes().strip(), path
        assert response.headers["Content-Length"] == str(len(response.content))
        assert kind is None or response.headers["Content-Type"] == kind
        head = session.head(server.url + path, timeout=TIMEOUT)
        volatile = {"Date", "X-Request-ID"}
        for name in set(response.headers) - volatile:
            assert head.headers[name] == response.headers[name], (path, name)
        assert head.content == b""


def test_a_part_of_a_file(server: Frontend) -> None:
    whole = importlib.resources.files("httpbin").joinpath("static/favicon.ico").read_bytes()
    url = f"{server.url}/static/favicon.ico"
    part = requests.get(url, headers={"Range": "bytes=1000-1999"}, timeout=TIMEOUT)
    assert (part.status_code, part.content) == (206, whole[1000:2000])
    etag = part.headers["ETag"]
    assert requests.get(url, headers={"If-None-Match": etag}, timeout=TIMEOUT).status_code == 304


def test_methods_that_are_not_for_a_path(server: Frontend) -> None:
    refused = requests.post(f"{server.url}/get", data=b"a body that nobody reads" * 10_000, timeout=TIMEOUT)
    assert refused.status_code == 405
    assert set(refused.headers["Allow"].split(", ")) == {"GET", "HEAD", "OPTIONS"}
    options = requests.options(f"{server.url}/get", headers={"Origin": "http://a.example"}, timeout=TIMEOUT)
    assert options.headers["Access-Control-Allow-Origin"] == "http://a.example"
    assert options.content == b""
    assert requests.get(f"{server.url}/nowhere", timeout=TIMEOUT).status_code == 404


def test_ten_sessions_at_once_get_each_their_own(server: Frontend) -> None:
    def visit(number: int) -> None:
        order = random.Random(number)
        with requests.Session() as session:
            session.get(f"{server.url}/cookies/set/visitor/{number}", timeout=TIMEOUT)
            for step in range(15):
                mark = f"{number}-{step}"
                size = order.randint(1, 100_000)
                match order.randrange(6):
                    case 0:
                        url = f"{server.url}/range/{size}?chunk_size={order.randint(100, 50_000)}"
                        assert session.get(url, timeout=TIMEOUT).content == alphabet(0, size - 1)
                    case 1:
                        posted = session.post(f"{server.url}/post", data=mark.encode() * 3000, timeout=TIMEOUT)
                        assert posted.json()["data"] == mark * 3000
                    case 2:
                        with session.get(f"{server.url}/stream/20?m={mark}", stream=True, timeout=TIMEOUT) as stream:
                            lines = [json.loads(line) for line in stream.iter_lines()]
                        assert [(line["id"], line["args"]["m"]) for line in lines] == [(n, mark) for n in range(20)]
                    case 3:
                        delayed = session.get(f"{server.url}/delay/0.1?m={mark}", timeout=TIMEOUT)
                        assert delayed.json()["args"] == {"m": mark}
                    case 4:
                        agent = {"User-Agent": mark}
                        assert session.get(f"{server.url}/gzip", headers=agent, timeout=TIMEOUT).json()["gzipped"]
                        answer = session.get(f"{server.url}/user-agent", headers=agent, timeout=TIMEOUT)
                        assert answer.json() == {"user-agent": mark}
                    case _:
                        cookies = session.get(f"{server.url}/cookies", timeout=TIMEOUT).json()["cookies"]
                        assert cookies == {"visitor": str(number)}

    with ThreadPoolExecutor(THREADS) as visitors:
        for visit_ended in [visitors.submit(visit, number) for number in range(THREADS)]:
            visit_ended.result()
