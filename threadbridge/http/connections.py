"""Limits the number of open connections, in total and for each client, and closes some to make room."""

from __future__ import annotations

import logging
import resource
import time
from collections.abc import Iterable, Iterator
from typing import Any, Final, Literal

from threadbridge.common.repeated_log import RepeatedLog
from threadbridge.http.forwarded import TrustedProxies, client_of
from threadbridge.http.request_rules import TOO_MANY_CONNECTIONS
from threadbridge.http.server_connection import HTTP1ServerConnection

logger = logging.getLogger("threadbridge")
_too_many, _too_many_of_one = RepeatedLog(logger), RepeatedLog(logger)

# Seconds between two looks at all connections, times their number, so that clients that keep connecting cost little.
LOOK_INTERVAL: Final = 50e-6


def default_max_connections() -> int:
    """Return the limit of open files, minus an eighth of it or 64, whichever is more, but at most half of it.

    The rest is for the database, logs, temporary files, operators and the application.
    """
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 65536 if files == resource.RLIM_INFINITY else max(1, files - min(files // 2, max(64, files // 8)))


class Connections:
    """The open connections of a server, each with its client: an IP address, or an IPv6 network of 64 bits.

    :param max_connections: the total limit; None for `default_max_connections`.
    :param max_connections_per_client: None for a quarter of that.
    :param trusted_proxies: they stand for many clients, so only the total limit applies to them.
    """

    def __init__(
        self,
        max_connections: int | None = None,
        max_connections_per_client: int | None = None,
        trusted_proxies: Iterable[str] = (),
    ) -> None:
        self.max_connections = max_connections or default_max_connections()
        self.max_connections_per_client = max_connections_per_client or max(1, self.max_connections // 4)
        # Number of connections closed to make room for others.
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
        """Count a connection of this client."""
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

    def make_room_for(self, client: str) -> Literal["client", "connections"] | None:
        """Make room for another connection of this client; returns the limit that does not allow it, if any.

        Closes the idle connection that would time out first, the client's own if it has reached its limit. If none is
        idle, refuses an arriving request of the client with the most connections, unless this one would have as many.
        """
        count = self._counts.get(client, 0)
        if count >= self.max_connections_per_client:
            if self._close_idle(client):
                return None
            _too_many_of_one.log(
                logging.WARNING,
                "refused a connection from %s, which already has max_connections_per_client=%d, none of them idle; if "
                "it is a proxy, add it to trusted_proxies",
                client,
                count,
            )
            return "client"
        if len(self._open) < self.max_connections or self._close_idle("") or self._refuse_arriving(count + 1):
            return None
        message = "refused a connection from %s: max_connections=%d are open, none of them idle"
        _too_many.log(logging.WARNING, message, client or "a proxy", self.max_connections)
        return "connections"

    def forget(self) -> None:
        """Drop references to connections that may have been closed; to be called now and then."""
        self._idle = {}
        self._arriving = []

    def _close_idle(self, client: str) -> bool:
        """Close the connection of a client, or ("") of any, that has been idle longest; False if there is none."""
        while self._idle.get(client) or (self._look() and self._idle.get(client)):
            deadline, connection = self._idle[client].pop()
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
                connection.refuse(TOO_MANY_CONNECTIONS)
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
