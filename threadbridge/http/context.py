"""Where the requests of a connection come from. Loop side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from threadbridge.http.forwarded import peer_of


class RequestContext:
    """Where a connection's requests come from: ``request.connection.context`` in handlers.

    It does not change once the first request has arrived.
    """

    def __init__(self, address: Any, protocol: str, server_port: str) -> None:
        # The client's, as `socket.socket.accept` gives it.
        self.address = address
        self.protocol = protocol
        # The port that the client has connected to; "" on a Unix socket.
        self.server_port = server_port
        self.remote_ip: str = address[0] if isinstance(address, tuple) else "0.0.0.0"
        self.peer = peer_of(self)
        # If the server asks for clients' certificates: see `tls_variables`.
        self.tls_variables: Mapping[str, str] = {}

    def __str__(self) -> str:
        return self.remote_ip if isinstance(self.address, tuple) else str(self.address)
