"""The PROXY protocol: who is believed, what is refused, and the real senders, HAProxy and nginx."""

from __future__ import annotations

import json
import socket
import ssl
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import requests

from tests.sockets.test_listeners import ask_unix
from tests.support.front_proxies import haproxy_with, nginx_with
from tests.support.inprocess import wait_until
from tests.support.processes import Frontend, free_port
from threadbridge.http.proxy_protocol import MAX_SIZE, BadProxyHeader, ProxyHeader, parse

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"


def version_2(command: int, family: int, addresses: bytes, *values: tuple[int, bytes]) -> bytes:
    rest = addresses + b"".join(struct.pack("!BH", kind, len(value)) + value for kind, value in values)
    return SIGNATURE + struct.pack("!BBH", command, family, len(rest)) + rest


V4 = socket.inet_aton("192.0.2.1") + socket.inet_aton("10.0.0.1") + struct.pack("!HH", 1234, 443)
V6 = socket.inet_pton(socket.AF_INET6, "2001:db8::1") * 2 + struct.pack("!HH", 1234, 443)
TLS = (0x20, b"\x01" + bytes(4))
PLAIN = (0x20, b"\x00" + bytes(4))


@pytest.mark.parametrize(
    ("data", "client", "server_port", "is_tls"),
    [
        (b"PROXY TCP4 192.0.2.1 10.0.0.1 1234 443\r\n", ("192.0.2.1", 1234), "443", False),
        (b"PROXY TCP6 2001:DB8:0::1 ::1 1234 443\r\n", ("2001:db8::1", 1234), "443", False),
        (b"PROXY UNKNOWN\r\n", None, "", False),
        (b"PROXY UNKNOWN ffff::1 anything at all\r\n", None, "", False),
        (version_2(0x21, 0x11, V4), ("192.0.2.1", 1234), "443", False),
        (version_2(0x21, 0x21, V6), ("2001:db8::1", 1234), "443", False),
        (version_2(0x21, 0x11, V4, (0x04, b"abc"), TLS, (0x30, b"")), ("192.0.2.1", 1234), "443", True),
        (version_2(0x21, 0x11, V4, PLAIN), ("192.0.2.1", 1234), "443", False),
        (version_2(0x20, 0x00, b""), None, "", False),
        # A health check's family does not count.
        (version_2(0x20, 0x12, b"what follows is skipped"), None, "", False),
        (version_2(0x21, 0x00, b"x"), None, "", False),
        (version_2(0x21, 0x31, bytes(216)), None, "", False),
    ],
)
def test_valid_headers_in_pieces(data: bytes, client: tuple[str, int] | None, server_port: str, is_tls: bool) -> None:
    for end in range(len(data)):
        assert parse(data[:end]) is None
    for following in (b"", b"GET / HTTP/1.1\r\n\r\n"):
        assert parse(data + following) == ProxyHeader(len(data), client, server_port, is_tls)


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n",
        b"PROXY\r\n",
        b"PROXY TCP4\r\n",
        b"PROXY UNKNOWNX\r\n",
        b"PROXY TCP4 192.0.2.1 10.0.0.1 1234\r\n",
        b"PROXY TCP4 192.0.2.1 10.0.0.1 1234 443 5\r\n",
        b"PROXY TCP4 192.0.2.1  10.0.0.1 1234 443\r\n",
        b"PROXY TCP4 192.0.2.1 10.0.0.1 1234 65536\r\n",
        b"PROXY TCP4 192.0.2.1 10.0.0.1 01 443\r\n",
        b"PROXY TCP4 192.0.2.1 10.0.0.1 -1 443\r\n",
        b"PROXY TCP4 192.0.2.256 10.0.0.1 1 443\r\n",
        b"PROXY TCP4 192.0.2.1 10.0.0 1 443\r\n",
        b"PROXY TCP4 ::1 ::1 1 443\r\n",
        b"PROXY TCP6 192.0.2.1 10.0.0.1 1 443\r\n",
        b"PROXY TCP6 fe80::1%eth0 ::1 1 443\r\n",
        b"PROXY UDP4 192.0.2.1 10.0.0.1 1 443\r\n",
        b"PROXY TCP4 192.0.2.1 10.0.0.1 1 443\n" + bytes(100),
        b"PROXY UNKNOWN " + b"x" * 100,
        SIGNATURE + b"\x11\x11\0\x0c" + V4,
        SIGNATURE + b"\x22\x11\0\x0c" + V4,
        version_2(0x21, 0x12, V4),
        version_2(0x21, 0x99, V4),
        version_2(0x21, 0x11, V4[:-1]),
        version_2(0x21, 0x21, V4),
        version_2(0x21, 0x11, V4 + b"\x20"),
        version_2(0x21, 0x11, V4 + b"\x20\0\x06\x01"),
        version_2(0x21, 0x11, V4, (0x20, b"")),
        SIGNATURE + b"\x21\x11" + struct.pack("!H", MAX_SIZE - 15),
    ],
)
def test_what_is_no_header(data: bytes) -> None:
    with pytest.raises(BadProxyHeader):
        parse(data)


APPLICATION = """
import json

NAMES = ("REMOTE_ADDR", "REMOTE_PORT", "wsgi.url_scheme", "SERVER_PORT", "HTTP_X_FORWARDED_FOR")

def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps([environ.get(name) for name in NAMES]).encode()]
"""


# All tests come from loopback, which is trusted otherwise.
ONLY_ONE_TRUSTED = """
import threadbridge.http.forwarded
threadbridge.http.forwarded.LOOPBACK = ("127.0.0.1",)
"""


@contextmanager
def serving(directory: Path, *options: str, application: str = APPLICATION) -> Iterator[Frontend]:
    (directory / "shown.py").write_text(application)
    command = ("-m", "threadbridge", "shown:app", "--threads=2", "--proxy_protocol", "--port={port}", *options)
    with Frontend(command, cwd=directory) as server:
        yield server


def received(
    address: tuple[str, int], *pieces: bytes, context: ssl.SSLContext | None = None, source: str = ""
) -> bytes:
    with socket.create_connection(address, 30, source_address=(source, 0)) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in pieces:
            client.sendall(piece)
        if context is not None:
            with context.wrap_socket(client, server_hostname="127.0.0.1") as wrapped:
                wrapped.sendall(REQUEST)
                return b"".join(iter(lambda: wrapped.recv(65536), b""))
        return b"".join(iter(lambda: client.recv(65536), b""))


REQUEST = b"GET / HTTP/1.0\r\nX-Forwarded-For: 203.0.113.9\r\n\r\n"
LINE = b"PROXY TCP4 192.0.2.1 10.0.0.1 1234 4433\r\n"


def shown(answer: bytes) -> list[str | None]:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 "), answer
    found: list[str | None] = json.loads(body)
    return found


def test_a_trusted_proxy_names_the_client_and_must_do_so(tmp_path: Path) -> None:
    path = tmp_path / "s"
    bound = ("--bind=127.0.0.1:{port}", f"--bind=unix:{path}", "--xheaders", "--trusted_proxies=192.0.2.77")
    (tmp_path / "shown.py").write_text(APPLICATION)
    command = ("-m", "threadbridge", "shown:app", "--threads=2", "--proxy_protocol", *bound)
    with Frontend(command, cwd=tmp_path) as server:
        address = ("127.0.0.1", server.port)
        # The header's client is no proxy, so its own header is removed.
        client = ["192.0.2.1", "1234", "http", "4433", None]
        assert shown(received(address, LINE + REQUEST)) == client
        assert shown(received(address, *(bytes([each]) for each in LINE), REQUEST)) == client
        assert shown(received(address, version_2(0x21, 0x11, V4, TLS) + REQUEST))[2:4] == ["https", "443"]
        # A second header is none.
        assert received(address, LINE + LINE + REQUEST).startswith(b"HTTP/1.1 400 ")
        # What the header names may be a trusted proxy that speaks HTTP.
        further = b"PROXY TCP4 192.0.2.77 10.0.0.1 1234 4433\r\n"
        assert shown(received(address, further + REQUEST))[0] == "203.0.113.9"
        # The proxy's own connection, such as a health check.
        own = shown(received(address, b"PROXY UNKNOWN\r\n" + REQUEST))
        assert own[0] == "203.0.113.9", "the proxy itself is trusted"
        assert b"expected the PROXY protocol's header" in received(address, REQUEST)
        assert b"HTTP/1.1 400 " in ask_unix(path)
        assert "refused a connection from the trusted proxy 127.0.0.1: it does not begin with" in server.output()


def test_a_stranger_s_header_does_not_count(tmp_path: Path) -> None:
    with serving(tmp_path, application=APPLICATION + ONLY_ONE_TRUSTED) as server:
        address = ("127.0.0.1", server.port)
        assert shown(received(address, LINE + REQUEST))[0] == "192.0.2.1"
        assert received(address, LINE + REQUEST, source="127.0.0.2").startswith(b"HTTP/1.1 400 ")
        assert shown(received(address, REQUEST, source="127.0.0.2"))[0] == "127.0.0.2"


def test_a_client_has_its_limit_behind_the_proxy(tmp_path: Path) -> None:
    with serving(tmp_path, "--max_connections_per_client=1") as server:
        address = ("127.0.0.1", server.port)
        with socket.create_connection(address, 30) as first:
            # Not idle: a request has begun to arrive.
            first.sendall(LINE + b"GET / HTTP/1.1\r\n")
            other = LINE.replace(b"192.0.2.1", b"192.0.2.2")
            assert shown(received(address, other + REQUEST))[0] == "192.0.2.2"
            wait_until(
                lambda: received(address, LINE + REQUEST).startswith(b"HTTP/1.1 503 "), "the second one is too many"
            )
            first.sendall(b"Connection: close\r\nHost: a\r\n\r\n")
            assert shown(b"".join(iter(lambda: first.recv(65536), b"")))[0] == "192.0.2.1"


def test_a_header_that_does_not_come_ends_the_connection(tmp_path: Path) -> None:
    with serving(tmp_path, "--header_timeout=0.5") as server:
        assert received(("127.0.0.1", server.port), LINE[:9]) == b""
        assert received(("127.0.0.1", server.port), LINE + REQUEST)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a certificate and its key."""
    directory = tmp_path_factory.mktemp("certificate")
    request = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -days 2 -subj /CN=localhost -nodes"
    files = "-addext subjectAltName=IP:127.0.0.1 -keyout both.pem -out cert.pem"
    subprocess.run(["openssl", *f"{request} {files}".split()], cwd=directory, check=True, capture_output=True)
    both = directory / "both.pem"
    both.write_text(both.read_text() + (directory / "cert.pem").read_text())
    return both


def test_tls_begins_behind_the_header(tmp_path: Path, certificate: Path) -> None:
    context = ssl.create_default_context(cafile=str(certificate))
    with serving(tmp_path, f"--certfile={certificate}") as server:
        address = ("127.0.0.1", server.port)
        for pieces in ([LINE], [LINE[:5], LINE[5:]], [version_2(0x21, 0x11, V4, (0x04, bytes(3000)))]):
            assert shown(received(address, *pieces, context=context))[:3] == ["192.0.2.1", "1234", "https"]
        # They are closed, perhaps by a reset, since there is more to read.
        with suppress(ConnectionResetError):
            assert received(address, REQUEST) == b""
        with pytest.raises(OSError):
            received(address, context=context)


BACKEND = """
frontend {name}
  mode tcp
  bind 127.0.0.1:{port}
  default_backend {name}
backend {name}
  mode {mode}
  server s 127.0.0.1:{server} {option} check inter 100ms
"""


def test_haproxy_and_nginx(tmp_path: Path) -> None:
    ports = [free_port() for _ in range(3)]
    with serving(tmp_path) as server:
        places = [
            BACKEND.format(name=option, port=port, mode="tcp", server=server.port, option=option)
            for port, option in zip(ports[:2], ("send-proxy", "send-proxy-v2"), strict=True)
        ]
        stream = f"stream {{ server {{ listen 127.0.0.1:{ports[2]}; proxy_protocol on;"
        stream += f" proxy_pass 127.0.0.1:{server.port}; }} }}"
        with haproxy_with(tmp_path, ports[1], "".join(places)), nginx_with(tmp_path, ports[2], stream):
            for port in ports:
                with socket.create_connection(("127.0.0.1", port), 30) as client:
                    client.sendall(REQUEST)
                    answer = shown(b"".join(iter(lambda: client.recv(65536), b"")))
                    assert answer[:4] == ["127.0.0.1", str(client.getsockname()[1]), "http", str(port)]
            # Health checks are the proxy's own connections.
            assert "refused" not in server.output().lower()


def test_haproxy_says_that_the_client_speaks_tls(tmp_path: Path, certificate: Path) -> None:
    port = free_port()
    with serving(tmp_path) as server:
        place = BACKEND.format(name="tls", port=port, mode="tcp", server=server.port, option="send-proxy-v2-ssl")
        place = place.replace(f"bind 127.0.0.1:{port}", f"bind 127.0.0.1:{port} ssl crt {certificate}")
        with haproxy_with(tmp_path, port, place):
            answer = requests.get(f"https://127.0.0.1:{port}/", timeout=30, verify=str(certificate)).json()
            assert answer[2] == "https"
