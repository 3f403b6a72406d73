"""What the application learns of its request (PEP 3333), and what it must not be told."""

from __future__ import annotations

import http.client
import json
from typing import Any
from wsgiref.types import StartResponse, WSGIEnvironment
from wsgiref.validate import validator

import pytest

from tests.support.inprocess import BridgeThread


def show_environ(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
    shown: dict[str, Any] = {name: value for name, value in environ.items() if isinstance(value, str | bool)}
    shown["body"] = environ["wsgi.input"].read(65536).decode("latin-1")
    body = json.dumps(shown).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]


def environ_of(request: bytes, **parameters: Any) -> dict[str, Any]:
    with BridgeThread(validator(show_environ), threads=1, **parameters) as server:
        received = server.exchange(request)
    head, _, body = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 "), received
    shown: dict[str, Any] = json.loads(body)
    return shown


def request(line: str, *headers: str, body: bytes = b"") -> bytes:
    return "\r\n".join([line, "Host: example.org", "Connection: close", *headers, "", ""]).encode("latin-1") + body


def test_an_ordinary_request() -> None:
    shown = environ_of(request("GET /a/b%20c?x=1&y=%2F HTTP/1.1", "X-Thing: 5", "Accept: text/html"))
    expected = {
        "REQUEST_METHOD": "GET",
        "SCRIPT_NAME": "",
        "PATH_INFO": "/a/b c",
        "QUERY_STRING": "x=1&y=%2F",
        "REQUEST_URI": "/a/b%20c?x=1&y=%2F",
        "RAW_URI": "/a/b%20c?x=1&y=%2F",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "SERVER_NAME": "example.org",
        "SERVER_PORT": "80",
        "REMOTE_ADDR": "127.0.0.1",
        "HTTP_HOST": "example.org",
        "HTTP_X_THING": "5",
        "HTTP_ACCEPT": "text/html",
        "wsgi.url_scheme": "http",
        "wsgi.multithread": True,
        "wsgi.run_once": False,
        "body": "",
    }
    assert {name: shown.get(name) for name in expected} == expected
    assert "CONTENT_LENGTH" not in shown and "CONTENT_TYPE" not in shown


def test_a_body_with_a_length() -> None:
    shown = environ_of(request("POST / HTTP/1.1", "Content-Length: 3", "Content-Type: text/x", body=b"abc"))
    assert (shown["body"], shown["CONTENT_LENGTH"], shown["CONTENT_TYPE"]) == ("abc", "3", "text/x")
    assert "HTTP_CONTENT_LENGTH" not in shown and "HTTP_CONTENT_TYPE" not in shown


def test_a_chunked_body_has_its_length() -> None:
    chunks = b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
    shown = environ_of(request("POST / HTTP/1.1", "Transfer-Encoding: chunked", body=chunks))
    assert (shown["body"], shown["CONTENT_LENGTH"]) == ("abcde", "5")


def test_the_path_is_bytes_as_latin_1() -> None:
    assert environ_of(request("GET /%E2%82%AC HTTP/1.1"))["PATH_INFO"].encode("latin-1").decode() == "/\u20ac"


def test_repeated_headers_are_joined() -> None:
    shown = environ_of(request("GET / HTTP/1.1", "X-A: 1", "X-A: 2", "Cookie: a=1", "Cookie: b=2"))
    assert (shown["HTTP_X_A"], shown["HTTP_COOKIE"]) == ("1,2", "a=1; b=2")


def test_headers_that_pretend_to_be_others_are_left_out() -> None:
    shown = environ_of(request("GET / HTTP/1.1", "X_Real_IP: 6.6.6.6", "Proxy: http://evil.example"))
    assert "HTTP_X_REAL_IP" not in shown and "HTTP_PROXY" not in shown


@pytest.mark.parametrize(
    ("host", "name", "port"),
    [
        ("example.org:81", "example.org", "81"),
        ("example.org:", "example.org", "80"),
        ("[::1]:81", "[::1]", "81"),
        ("[::1]:", "[::1]", "80"),
        ("[::1]", "[::1]", "80"),
    ],
)
def test_the_server_s_name_is_the_host_s(host: str, name: str, port: str) -> None:
    shown = environ_of(f"GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    assert (shown["SERVER_NAME"], shown["SERVER_PORT"]) == (name, port)


def test_without_a_host_the_port_is_the_one_that_was_connected_to() -> None:
    with BridgeThread(validator(show_environ), threads=1) as server:
        received = server.exchange(b"GET / HTTP/1.0\r\n\r\n")
        port = str(server.port)
    shown = json.loads(received.partition(b"\r\n\r\n")[2])
    assert (shown["SERVER_NAME"], shown["SERVER_PORT"]) == ("localhost", port)


def test_the_client_s_port_the_software_and_https() -> None:
    with BridgeThread(validator(show_environ), threads=1, xheaders=True) as server, server.connect() as client:
        own_port = str(client.getsockname()[1])

        def ask(*headers: str) -> dict[str, Any]:
            client.sendall("\r\n".join(["GET / HTTP/1.1", "Host: a", *headers, "", ""]).encode())
            response = http.client.HTTPResponse(client)
            response.begin()
            shown: dict[str, Any] = json.loads(response.read())
            return shown

        direct, forwarded = ask(), ask("X-Real-IP: 1.2.3.4", "X-Scheme: https")
    assert (direct["REMOTE_PORT"], direct["SERVER_SOFTWARE"]) == (own_port, "threadbridge")
    assert "HTTPS" not in direct and forwarded["HTTPS"] == "on"
    assert "REMOTE_PORT" not in forwarded, "the proxy does not tell it"


@pytest.mark.parametrize(
    ("headers", "address", "scheme"),
    [
        ([], "127.0.0.1", "http"),
        (["X-Real-IP: 1.2.3.4", "X-Scheme: https"], "1.2.3.4", "https"),
        (["X-Forwarded-For: 6.6.6.6, 1.2.3.4", "X-Forwarded-Proto: http, https"], "1.2.3.4", "https"),
        (["X-Forwarded-For: 1.2.3.4, 10.0.0.7, 127.0.0.1"], "1.2.3.4", "http"),
        (["X-Forwarded-For: 10.0.0.7, 127.0.0.1"], "10.0.0.7", "http"),
        (["X-Real-IP: 2001:db8::1"], "2001:db8::1", "http"),
        (["X-Real-IP: nonsense", "X-Scheme: gopher"], "127.0.0.1", "http"),
    ],
)
def test_what_a_trusted_proxy_says(headers: list[str], address: str, scheme: str) -> None:
    shown = environ_of(request("GET / HTTP/1.1", *headers), xheaders=True, trusted_proxies=["10.0.0.0/8"])
    assert (shown["REMOTE_ADDR"], shown["wsgi.url_scheme"]) == (address, scheme)


def test_nobody_is_believed_without_xheaders() -> None:
    shown = environ_of(request("GET / HTTP/1.1", "X-Real-IP: 1.2.3.4", "X-Scheme: https"))
    assert (shown["REMOTE_ADDR"], shown["wsgi.url_scheme"]) == ("127.0.0.1", "http")
