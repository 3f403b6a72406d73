"""A forwarded header counts only when the peer that sent it is trusted."""

from __future__ import annotations

import pytest
from tornado.httputil import HTTPHeaders

from threadbridge.forwarded import ForwardedHeaders, Peer

HEADERS = HTTPHeaders({"X-Real-IP": "1.2.3.4", "X-Forwarded-For": "1.2.3.4", "X-Scheme": "https"})


@pytest.mark.parametrize("proxy", ["127.0.0.1", "127.9.9.9", "::1", "10.1.2.3", "192.0.2.1", ""])
def test_trusted_peers(proxy: str) -> None:
    forwarded = ForwardedHeaders(["10.0.0.0/8", "192.0.2.1"])
    assert forwarded.client_of(Peer(proxy, "http"), HEADERS) == Peer("1.2.3.4", "https")


@pytest.mark.parametrize(
    "request_id", ["1", "5f2c1a0e9b7d4c3f8a6e5d4c3b2a1908", "3F2504E0-4F89-11D3-9A0C-0305E82C3301", "a" * 64]
)
def test_the_request_id_of_a_trusted_proxy(request_id: str) -> None:
    headers = HTTPHeaders({"X-Request-ID": request_id})
    assert ForwardedHeaders().request_id_of(Peer("127.0.0.1", "http"), headers) == request_id
    assert ForwardedHeaders().request_id_of(Peer("192.0.2.1", "http"), headers) == ""


@pytest.mark.parametrize("request_id", ["", "a" * 65, "a,b", "a b", "*/", "a/b", "'", "\xe4", "%s"])
def test_a_request_id_that_is_not_fit_to_be_one(request_id: str) -> None:
    headers = HTTPHeaders()
    headers.add("X-Request-ID", request_id, _chars_are_bytes=False)
    assert ForwardedHeaders().request_id_of(Peer("127.0.0.1", "http"), headers) == ""


@pytest.mark.parametrize("stranger", ["11.1.2.3", "192.0.2.2", "2001:db8::1"])
def test_strangers(stranger: str) -> None:
    forwarded = ForwardedHeaders(["10.0.0.0/8", "192.0.2.1"])
    assert forwarded.client_of(Peer(stranger, "http"), HEADERS) == Peer(stranger, "http")
