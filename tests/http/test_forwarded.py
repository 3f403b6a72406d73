"""A forwarded header counts only when the peer that sent it is trusted."""

from __future__ import annotations

import logging
import tracemalloc

import pytest
from tornado.httputil import HTTPHeaders

from tests.worker.test_environ import environ_of, request
from threadbridge.http.forwarded import ClientAddress, ClientHeaders, ForwardedHeaders

HEADERS = HTTPHeaders({"X-Real-IP": "1.2.3.4", "X-Forwarded-For": "1.2.3.4", "X-Scheme": "https"})


@pytest.mark.parametrize("proxy", ["127.0.0.1", "127.9.9.9", "::1", "10.1.2.3", "192.0.2.1", ""])
def test_trusted_peers(proxy: str) -> None:
    forwarded = ForwardedHeaders(["10.0.0.0/8", "192.0.2.1"])
    assert forwarded.client_of(ClientAddress(proxy, "http"), HEADERS.copy()) == ClientAddress("1.2.3.4", "https")


@pytest.mark.parametrize(
    "request_id", ["1", "5f2c1a0e9b7d4c3f8a6e5d4c3b2a1908", "3F2504E0-4F89-11D3-9A0C-0305E82C3301", "a" * 64]
)
def test_the_request_id_of_a_trusted_proxy(request_id: str) -> None:
    headers = HTTPHeaders({"X-Request-ID": request_id})
    assert ForwardedHeaders().request_id_of(ClientAddress("127.0.0.1", "http"), headers) == request_id
    assert ForwardedHeaders().request_id_of(ClientAddress("192.0.2.1", "http"), headers) == ""


@pytest.mark.parametrize("request_id", ["", "a" * 65, "a,b", "a b", "*/", "a/b", "'", "\xe4", "%s"])
def test_a_request_id_that_is_not_fit_to_be_one(request_id: str) -> None:
    headers = HTTPHeaders()
    headers.add("X-Request-ID", request_id, _chars_are_bytes=False)
    assert ForwardedHeaders().request_id_of(ClientAddress("127.0.0.1", "http"), headers) == ""


@pytest.mark.parametrize("stranger", ["11.1.2.3", "192.0.2.2", "2001:db8::1"])
def test_strangers(stranger: str) -> None:
    forwarded = ForwardedHeaders(["10.0.0.0/8", "192.0.2.1"])
    assert forwarded.client_of(ClientAddress(stranger, "http"), HEADERS.copy()) == ClientAddress(stranger, "http")


def client(source: ClientHeaders, *lines: str, proxies: tuple[str, ...] = ("10.0.0.0/8",)) -> tuple[str, str]:
    headers = HTTPHeaders()
    for line in lines:
        name, _, value = line.partition(": ")
        headers.add(name, value, _chars_are_bytes=False)
    found = ForwardedHeaders(proxies, source).client_of(ClientAddress("127.0.0.1", "http", "5"), headers)
    assert found.port == ("5" if found.address == "127.0.0.1" else ""), "the port is the proxy's"
    return found.address, found.scheme


# As a proxy that sets one of them passes what a client sends of the others.
ALL = ["X-Real-IP: 1.1.1.1", "X-Scheme: https", "X-Forwarded-For: 2.2.2.2", "X-Forwarded-Proto: http"]
ALL += ["Forwarded: for=3.3.3.3;proto=https"]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("x-real-ip", ("1.1.1.1", "https")),
        ("x-forwarded-for", ("2.2.2.2", "http")),
        ("forwarded", ("3.3.3.3", "https")),
        ("auto", ("127.0.0.1", "http")),
    ],
)
def test_one_source_counts_and_the_others_are_kept_from_the_application(
    source: ClientHeaders, expected: tuple[str, str]
) -> None:
    shown = environ_of(
        request("GET / HTTP/1.1", *ALL, "X-Forwarded-Host: a.example"), xheaders=True, client_address=source
    )
    assert (shown["REMOTE_ADDR"], shown["wsgi.url_scheme"]) == expected
    seen = {name for name in shown if name.startswith(("HTTP_X_", "HTTP_FORWARDED"))} - {"HTTP_X_FORWARDED_HOST"}
    assert (
        seen
        == {
            "x-real-ip": {"HTTP_X_REAL_IP", "HTTP_X_SCHEME"},
            "x-forwarded-for": {"HTTP_X_FORWARDED_FOR", "HTTP_X_FORWARDED_PROTO"},
            "forwarded": {"HTTP_FORWARDED"},
            "auto": set(),
        }[source]
    )
    assert "HTTP_X_FORWARDED_HOST" in shown, "the proxy is trusted"


def test_headers_of_a_stranger_are_kept_from_the_application() -> None:
    headers = HTTPHeaders()
    of_proxies = ["X-Forwarded-Host: a.example", "X-Forwarded-Prefix: /evil", "X-Script-Name: /evil"]
    for line in [*ALL, *of_proxies, "X-Other: 1"]:
        headers.parse_line(line)
    stranger = ClientAddress("192.0.2.1", "http", "5")
    assert ForwardedHeaders().client_of(stranger, headers) == stranger
    assert set(headers) == {"X-Other"}


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["X-Real-IP: 1.2.3.4"], ("1.2.3.4", "http")),
        (["X-Forwarded-For: 9.9.9.9, 1.2.3.4", "X-Forwarded-Proto: https"], ("1.2.3.4", "https")),
        # nginx's, with the project's configuration.
        (
            ["X-Real-IP: 1.2.3.4", "X-Forwarded-For: 9.9.9.9, 1.2.3.4", "X-Scheme: https", "X-Forwarded-Proto: https"],
            ("1.2.3.4", "https"),
        ),
        # One of them is the client's own.
        (["X-Real-IP: 9.9.9.9", "X-Forwarded-For: 1.2.3.4"], ("127.0.0.1", "http")),
        (["X-Real-IP: 1.2.3.4", "X-Forwarded-For: 9.9.9.9"], ("127.0.0.1", "http")),
        (["X-Forwarded-For: 1.2.3.4", "X-Scheme: https", "X-Forwarded-Proto: http"], ("1.2.3.4", "http")),
        # Twice the same address, written in two ways.
        (["X-Real-IP: 2001:DB8::1", "X-Forwarded-For: [2001:db8:0::1]:443"], ("2001:db8::1", "http")),
        (["Forwarded: for=9.9.9.9;proto=https"], ("127.0.0.1", "http")),
    ],
)
def test_without_a_choice_the_headers_must_agree(lines: list[str], expected: tuple[str, str]) -> None:
    assert client("auto", *lines) == expected


def test_a_contradiction_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    forwarded = ForwardedHeaders()
    for _ in range(100):
        headers = HTTPHeaders({"X-Real-IP": "9.9.9.9", "X-Forwarded-For": "1.2.3.4"})
        forwarded.client_of(ClientAddress("127.0.0.1", "http"), headers)
    [record] = caplog.records
    assert record.levelno == logging.WARNING and "set client_address" in record.getMessage()


@pytest.mark.parametrize("source", ["x-real-ip", "x-forwarded-for", "forwarded"])
@pytest.mark.parametrize(
    ("node", "address"),
    [
        ("1.2.3.4", "1.2.3.4"),
        ("1.2.3.4:5678", "1.2.3.4"),
        ("[2001:db8::1]", "2001:db8::1"),
        ("[2001:DB8::1]:80", "2001:db8::1"),
        *[
            (node, "127.0.0.1")
            for node in (
                "fe80::1%1",
                "[fe80::1%eth0]",
                'fe80::1%1 - - [x] \\"GET /admin',
                "unknown",
                "_hidden",
                "_1.2.3.4",
                "1.2.3.4:port",
                "1.2.3.4.5",
                "1.2.3.4 x",
                "01.2.3.4",
                "0x7f.1",
                "1",
                "[1.2.3.4",
                "example.org",
                "::" * 40,
                "1" * 5000,
                "",
            )
        ],
    ],
)
def test_a_client_is_an_address_and_nothing_else(source: ClientHeaders, node: str, address: str) -> None:
    line = {"x-real-ip": "X-Real-IP: ", "x-forwarded-for": "X-Forwarded-For: 8.8.8.8, ", "forwarded": "Forwarded: for="}
    quoted = f'"{node}"' if source == "forwarded" else node
    assert client(source, line[source] + quoted) == (address, "http")


@pytest.mark.parametrize(
    ("values", "address", "scheme"),
    [
        (["for=1.2.3.4"], "1.2.3.4", "http"),
        (['For="1.2.3.4"; Proto=HTTPS ;by=10.0.0.1'], "1.2.3.4", "https"),
        (['for="\\1.2.3.4"'], "1.2.3.4", "http"),
        (['for="a,b;for=9.9.9.9", for=1.2.3.4'], "1.2.3.4", "http"),
        # Of several proxies each adds an element; the client's scheme is in the client's element.
        (["for=9.9.9.9;proto=http, for=1.2.3.4;proto=https, for=10.0.0.1;proto=http"], "1.2.3.4", "https"),
        (["for=9.9.9.9;proto=http", "for=1.2.3.4;proto=https", "for=10.0.0.1"], "1.2.3.4", "https"),
        # All are trusted: the first.
        (["for=10.0.0.2;proto=https,for=10.0.0.1"], "10.0.0.2", "https"),
        # What cannot be read ends what is known.
        (["for=1.2.3.4, for=unknown"], "127.0.0.1", "http"),
        (["for=1.2.3.4, proto=https"], "127.0.0.1", "http"),
        (["for=1.2.3.4, for=_secret, for=10.0.0.1"], "10.0.0.1", "http"),
        (["for=1.2.3.4;for=9.9.9.9"], "127.0.0.1", "http"),
        (["for=1.2.3.4;proto=gopher"], "1.2.3.4", "http"),
        (["for = 1.2.3.4"], "127.0.0.1", "http"),
        (["for=2001:db8::1"], "127.0.0.1", "http"),
        (['for="1.2.3.4'], "127.0.0.1", "http"),
        # A client that opens quotes gains nothing from what its proxy adds.
        (['for="9.9.9.9, for=1.2.3.4'], "127.0.0.1", "http"),
        (['for="9.9.9.9', "for=1.2.3.4"], "1.2.3.4", "http"),
        ([",,;;, for=1.2.3.4"], "1.2.3.4", "http"),
        (["for=1.2.3.4," * 1000], "127.0.0.1", "http"),
        (["nonsense"], "127.0.0.1", "http"),
    ],
)
def test_forwarded(values: list[str], address: str, scheme: str) -> None:
    assert client("forwarded", *[f"Forwarded: {value}" for value in values]) == (address, scheme)


@pytest.mark.parametrize("line", ["X-Real-IP", "X-Forwarded-For", "X-Scheme", "X-Forwarded-Proto", "Forwarded"])
def test_long_values_are_not_kept(line: str) -> None:
    forwarded = ForwardedHeaders((), "forwarded" if line == "Forwarded" else "auto")
    prefix = "for=" if line == "Forwarded" else ""

    def read(count: int) -> None:
        for number in range(count):
            headers = HTTPHeaders({line: f"{prefix}{number}{line}{'x' * 4000}"})
            assert forwarded.client_of(ClientAddress("127.0.0.1", "http"), headers).address == "127.0.0.1"

    tracemalloc.start()
    try:
        read(10)
        before, _ = tracemalloc.get_traced_memory()
        read(200)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 100_000, "200 values are 800 kB"


def test_an_unknown_source_is_refused() -> None:
    with pytest.raises(ValueError, match="give one of auto, x-real-ip, x-forwarded-for, forwarded"):
        ForwardedHeaders((), "x-client-ip")  # type: ignore[arg-type]
