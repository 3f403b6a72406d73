"""Limits the number of open connections, in total and for each client, and closes some to make room."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterable, Iterator
from typing import Any

from threadbridge.http.forwarded import TrustedProxies, client_of
from threadbridge.http.server_connection import HTTP1ServerConnection

# File descriptors kept free by default for the database, logs, temporary files, operators and the application.
KEPT_FREE = 64
# The limit if the process may open any number of files.
UNLIMITED = 65536
# Seconds between two looks at all connections, times their number, so that clients that keep connecting cost little.
LOOK_INTERVAL = 50e-6


def default_max_connections() -> int:
    """Return the limit of open files, minus an eighth of it or 64, whichever is more, but at most half of it."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY:
        return UNLIMITED
    return max(1, files - min(files // 2, max(KEPT_FREE, files // 8)))


class Connections:
    """The open connections of a server, each with its client: an IP address, or an IPv6 network of 64 bits.

    :param max_connections: the limit in total; None for `default_max_connections`.
    :param max_connections_per_client: the limit for each client; None for a quarter of that.
    :param trusted_proxies: see `TrustedProxies`, which also says what is raised. They stand for many clients, so only
        the limit in total applies to them, as to Unix sockets.
    """

    def __init__(
        self,
        max_connections: int | None = None,
        max_connections_per_client: int | None = None,
        trusted_proxies: Iterable[str] = (),
    ) -> None:
        self.max_connections = max_connections or default_max_connections()
        self.max_connections_per_client = max_connections_per_client or max(1, self.max_connections // 4)
        # Number of connections that were closed to make room for others.
        self.displaced = 0
        self._proxies = TrustedProxies(trusted_proxies)
        self._open: dict[HTTP1ServerConnection, str] = {}
        self._counts: dict[str, int] = {}
        # The connections that could be closed at the last look; the last in a list is closed first.
        self._idle: dict[str, list[tuple[float, HTTP1ServerConnection]]] = {}
        self._arriving: list[HTTP1ServerConnection] = []
        self._look_at = 0.0

    def __len__(self) -> int:
        return len(self._open)

    def __iter__(self) -> Iterator[HTTP1ServerConnection]:
        return iter(self._open)

    def client_of(self, address: Any) -> str:
        """Return the client at an address as `socket.socket.accept` gives it; "" if it has no limit of its own."""
        if not isinstance(address, tuple) or self._proxies.include(address[0]):
            return ""
        return client_of(address[0])

    def add(self, connection: HTTP1ServerConnection, client: str) -> None:
        """Count a connection."""
        self._open[connection] = client
        if client:
            self._counts[client] = self._counts.get(client, 0) + 1

    def discard(self, connection: HTTP1ServerConnection) -> None:
        """Stop counting a connection; does nothing if it is not counted."""
        client = self._open.pop(connection, "")
        if client:
            self._counts[client] -= 1
            if not self._counts[client]:
                del self._counts[client]

    def has_too_many(self, client: str) -> bool:
        """Whether a client has reached its limit."""
        return self._counts.get(client, 0) >= self.max_connections_per_client

    def make_room_for(self, client: str) -> bool:
        """Return whether the client may open another connection; closes one to make room if necessary.

        It closes the idle connection that would time out first: one of the same client if that has reached its limit,
        otherwise any. If none is idle, it refuses an arriving request of the client with the most connections, if those
        are more than this client would have.
        """
        if self.has_too_many(client):
            return self._close_idle(client)
        if len(self._open) < self.max_connections:
            return True
        return self._close_idle("") or self._refuse_arriving(self._counts.get(client, 0) + 1)

    def forget(self) -> None:
        """Drop references to connections that may have been closed; to be called now and then."""
        self._idle = {}
        self._arriving = []

    def _close_idle(self, client: str) -> bool:
        """Close the connection of a client, or ("") of any, that has been idle longest; False if there is none."""
        return self._close_found(client) or (self._look() and self._close_found(client))

    def _close_found(self, client: str) -> bool:
        found = self._idle.get(client, [])
        while found:
            deadline, connection = found.pop()
            # It may have had a request since, or have an unread one.
            if connection.deadline == deadline and connection.is_expendable and not connection.stream.has_unread():
                self._displace(connection)
                return True
        return False

    def _refuse_arriving(self, fewest: int) -> bool:
        """Refuse an arriving request of the client with the most connections, if those are more than ``fewest``."""
        while self._arriving:
            connection = self._arriving[-1]
            if connection in self._open and connection.is_receiving:
                if self._counts[self._open[connection]] <= fewest:
                    # It stays in the list, for a client that has fewer.
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
        # Now, because its close callback runs only in the loop's next iteration.
        self.discard(connection)
        connection.close()
