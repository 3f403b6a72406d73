"""How many connections may be open, in all and for each client, and which of them make room for another. Loop side."""

from __future__ import annotations

import ipaddress
import resource
import time
from collections.abc import Iterable, Iterator
from typing import Any

from threadbridge.http.forwarded import LOOPBACK, client_of
from threadbridge.http.server_connection import HTTP1ServerConnection

# Descriptors that are not for clients by default: the database, logs, temporary files, operators, the application's.
KEPT_FREE = 64
# Where the process may open any number of files.
UNLIMITED = 65536
# Seconds between two looks at all connections, for each of them: whoever connects again and again costs little.
LOOK_INTERVAL = 50e-6


def default_max_connections() -> int:
    """As many as the process may open files, less an eighth or 64, or, of few, a half."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY:
        return UNLIMITED
    return max(1, files - min(files // 2, max(KEPT_FREE, files // 8)))


class Connections:
    """The open connections of a server, each with its client: an IP address, or an IPv6 network of 64 bits.

    :param max_connections: how many there may be; None for `default_max_connections`.
    :param max_connections_per_client: how many a client may have; None for a quarter of all.
    :param trusted_proxies: addresses and networks that stand for many clients: besides these, loopback and Unix sockets
        only the limit in all counts for them.

    Raises ``ValueError`` for a proxy that is neither an address nor a network.
    """

    def __init__(
        self,
        max_connections: int | None = None,
        max_connections_per_client: int | None = None,
        trusted_proxies: Iterable[str] = (),
    ) -> None:
        self.max_connections = max_connections or default_max_connections()
        self.max_connections_per_client = max_connections_per_client or max(1, self.max_connections // 4)
        # How many were closed to make room for others.
        self.displaced = 0
        self._proxies = [ipaddress.ip_network(proxy) for proxy in (*LOOPBACK, *trusted_proxies)]
        self._open: dict[HTTP1ServerConnection, str] = {}
        self._counts: dict[str, int] = {}
        # What could be closed for others at the last look; the first to go is the last.
        self._idle: dict[str, list[tuple[float, HTTP1ServerConnection]]] = {}
        self._arriving: list[HTTP1ServerConnection] = []
        self._look_at = 0.0

    def __len__(self) -> int:
        return len(self._open)

    def __iter__(self) -> Iterator[HTTP1ServerConnection]:
        return iter(self._open)

    def client_of(self, address: Any) -> str:
        """The client whose connections are counted together; "" for one that is not limited on its own.

        :param address: as `socket.socket.accept` gives it.
        """
        if not isinstance(address, tuple):
            return ""
        client = client_of(address[0])
        ip = ipaddress.ip_address(address[0].partition("%")[0] if "/" in client else client)
        return "" if any(ip in network for network in self._proxies) else client

    def add(self, connection: HTTP1ServerConnection, client: str) -> None:
        """Count a connection."""
        self._open[connection] = client
        if client:
            self._counts[client] = self._counts.get(client, 0) + 1

    def discard(self, connection: HTTP1ServerConnection) -> None:
        """Count a connection no more; does nothing with one that is not counted."""
        client = self._open.pop(connection, "")
        if client:
            self._counts[client] -= 1
            if not self._counts[client]:
                del self._counts[client]

    def has_too_many(self, client: str) -> bool:
        """Whether a client has as many as it may."""
        return self._counts.get(client, 0) >= self.max_connections_per_client

    def make_room_for(self, client: str) -> bool:
        """Whether one more may be opened; closes another for it if need be.

        That is the idle one whose time is over first: of the same client, if this has too many. If none is idle, it is
        one whose request is still arriving, of the client with the most, if that has more than this one would have.
        """
        if self.has_too_many(client):
            return self._close_idle(client)
        if len(self._open) < self.max_connections:
            return True
        return self._close_idle("") or self._cut_arriving(self._counts.get(client, 0) + 1)

    def forget(self) -> None:
        """Let go of connections that may have been closed; to be called now and then."""
        self._idle = {}
        self._arriving = []

    def _close_idle(self, client: str) -> bool:
        """Close the longest idle one of a client, "" for any; whether there was one."""
        return self._close_found(client) or (self._look() and self._close_found(client))

    def _close_found(self, client: str) -> bool:
        found = self._idle.get(client, [])
        while found:
            deadline, connection = found.pop()
            # It may have had a request since, or have one that is not read yet.
            if connection.deadline == deadline and connection.is_expendable and not connection.stream.has_unread():
                self._displace(connection)
                return True
        return False

    def _cut_arriving(self, fewest: int) -> bool:
        """Refuse a request that is arriving, of the client that has the most, if it has more than ``fewest``."""
        while self._arriving:
            connection = self._arriving[-1]
            if connection.is_receiving and connection in self._open:
                if self._counts[self._open[connection]] <= fewest:
                    # It stays for somebody who has fewer.
                    return False
                connection.refuse_for("too many connections")
                self._displace(connection)
                return True
            self._arriving.pop()
        return False

    def _look(self) -> bool:
        now = time.monotonic()
        if now < self._look_at:
            return False
        self._look_at = now + LOOK_INTERVAL * len(self._open)
        idle = [(each.deadline, each) for each in self._open if each.is_expendable]
        idle.sort(key=lambda found: found[0], reverse=True)
        self._idle = {"": idle}
        for deadline, connection in idle:
            client = self._open[connection]
            if client:
                self._idle.setdefault(client, []).append((deadline, connection))
        self._arriving = [each for each, client in self._open.items() if client and each.is_receiving]
        self._arriving.sort(key=lambda each: (self._counts[self._open[each]], -each.deadline))
        return True

    def _displace(self, connection: HTTP1ServerConnection) -> None:
        self.displaced += 1
        # Now: its callback comes with the loop's next turn.
        self.discard(connection)
        connection.close()
