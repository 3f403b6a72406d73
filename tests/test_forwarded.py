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


@pytest.mark.parametrize("stranger", ["11.1.2.3", "192.0.2.2", "2001:db8::1"])
def test_strangers(stranger: str) -> None:
    forwarded = ForwardedHeaders(["10.0.0.0/8", "192.0.2.1"])
    assert forwarded.client_of(Peer(stranger, "http"), HEADERS) == Peer(stranger, "http")
