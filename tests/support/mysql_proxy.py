"""A stand-in for a MySQL proxy that has session ids of its own and shares the server's connections among its clients.

It imitates what matters for stopping queries:

- The handshake has the id of the proxy's session. ``KILL [CONNECTION|QUERY] ID`` is taken to mean such a session, and
  is answered OK whatever the number: ProxySQL 2.7, lib/MySQL_Session.cpp, ``handle_command_query_kill``; MaxScale
  24.02, server/modules/protocol/MariaDB/mariadb_client.cc, ``execute_kill``.
- Sessions outside of transactions exchange their server connections between two statements ("multiplexing"). A query
  that contains ``@`` or ``GET_LOCK(`` ends that for its session: ProxySQL, lib/mysql_connection.cpp,
  ``ProcessQueryAndSetStatusFlags``.

Unlike them, it gives each session a server connection of its own at first, on which the client logs in. So all clients
must have the same user, database and settings.
"""

from __future__ import annotations

import random
import re
import select
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import MySQLdb

_COM_QUIT, _COM_QUERY = 1, 3
# Capabilities that the stand-in does not speak: compression, TLS, a shorter end of results.
_NOT_SPOKEN = 0x20 | 0x800 | 0x01000000
_IN_TRANSACTION, _MORE_RESULTS = 1, 8
_KILL = re.compile(rb"(?:/\*.*?\*/\s*)*KILL\s+(CONNECTION |QUERY |)\s*(\d+)\s*", re.IGNORECASE | re.DOTALL)


class _Gone(Exception):
    """A connection has ended."""


def _receive(connection: socket.socket) -> bytes:
    """A whole packet with its header."""
    head = _exactly(connection, 4)
    return head + _exactly(connection, int.from_bytes(head[:3], "little"))


def _exactly(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = connection.recv(size - len(data))
        if not part:
            raise _Gone
        data += part
    return data


class _Backend:
    """A connection to the server."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.socket = socket.create_connection(address)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.number = 0
        self.is_in_transaction = False


class _Session:
    """A client; `_Proxy.lock` guards which server connection it has, and whether it uses it."""

    def __init__(self, number: int, client: socket.socket, backend: _Backend) -> None:
        self.number = number
        self.client = client
        self.backend = backend
        self.is_busy = True
        self.is_pinned = False
        self.answer = bytearray()


class StandInProxy:
    """Accepts connections at ``address``. The lists may be read at any time."""

    def __init__(
        self, server: tuple[str, int], settings: dict[str, object], *, multiplexes: bool, first_id: int
    ) -> None:
        self._server = server
        self._settings = settings
        self.multiplexes = multiplexes
        self._random = random.Random(1)
        self._lock = threading.Lock()
        self._sessions: dict[int, _Session] = {}
        self._next_id = first_id
        # The KILL statements that it was sent, and those statements of its clients that ended multiplexing.
        self.kills: list[bytes] = []
        self.pinning: list[bytes] = []
        self.exchanges = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address: tuple[str, int] = self._listener.getsockname()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            sessions = list(self._sessions.values())
        for session in sessions:
            for each in (session.client, session.backend.socket):
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with self._lock:
            session = _Session(self._next_id, client, _Backend(self._server))
            self._next_id += 1
            self._sessions[session.number] = session
        with suppress(_Gone, OSError):
            self._log_in(session)
            while True:
                self._end_use(session)
                command = _receive(client)
                self._begin_use(session, command)
                if command[4] == _COM_QUIT:
                    break
                if not self._intercepts(session, command):
                    session.backend.socket.sendall(command)
                    self._relay_answer(session)
        with self._lock:
            del self._sessions[session.number]
        client.close()
        session.backend.socket.close()

    def _log_in(self, session: _Session) -> None:
        backend, client = session.backend, session.client
        greeting = bytearray(_receive(backend.socket))
        # Behind the protocol's number: the version, the thread id, 8 bytes of the scramble and one that is 0, and the
        # capabilities, in two halves.
        at = greeting.index(0, 5) + 1
        [backend.number] = struct.unpack_from("<I", greeting, at)
        struct.pack_into("<I", greeting, at, session.number)
        lower = at + 4 + 8 + 1
        upper = lower + 2 + 1 + 2
        for place, unspoken in ((lower, _NOT_SPOKEN & 0xFFFF), (upper, _NOT_SPOKEN >> 16)):
            [flags] = struct.unpack_from("<H", greeting, place)
            struct.pack_into("<H", greeting, place, flags & ~unspoken)
        # MariaDB's own capabilities.
        greeting[upper + 2 + 1 + 6 : upper + 2 + 1 + 10] = bytes(4)
        client.sendall(greeting)
        while True:
            backend.socket.sendall(_receive(client))
            answer = _receive(backend.socket)
            client.sendall(answer)
            if answer[4] == 0xFF:
                raise _Gone
            if answer[4] == 0:
                return

    # Between two statements.

    def _end_use(self, session: _Session) -> None:
        with self._lock:
            session.is_busy = False

    def _begin_use(self, session: _Session, command: bytes) -> None:
        """Pin the session if the statement demands it; perhaps exchange its server connection with another one's."""
        text = command[5:] if command[4] == _COM_QUERY else b""
        with self._lock:
            session.is_busy = True
            if not self.multiplexes or not text.startswith((b"SELECT", b"/*")):
                return
            if b"@" in text or b"GET_LOCK(" in text:
                self.pinning.append(text)
                session.is_pinned = True
            others = [
                other
                for other in self._sessions.values()
                if not (other.is_busy or other.is_pinned or other.backend.is_in_transaction)
            ]
            if others and not (session.is_pinned or session.backend.is_in_transaction):
                other = self._random.choice(others)
                session.backend, other.backend = other.backend, session.backend
                self.exchanges += 1

    def _intercepts(self, session: _Session, command: bytes) -> bool:
        """Kill the session that the statement names, if it is a KILL, and answer OK in any case."""
        if command[4] == _COM_QUERY and b"KILL" in command.upper():
            self.kills.append(command[5:])
        found = _KILL.fullmatch(command[5:]) if command[4] == _COM_QUERY else None
        if found is None:
            return False
        kind, number = found[1].strip() or b"CONNECTION", int(found[2])
        with self._lock:
            target = self._sessions.get(number)
        if target is not None and kind.upper() == b"QUERY":
            control = MySQLdb.connect(**self._settings)
            with suppress(MySQLdb.Error):
                control.cursor().execute(f"KILL QUERY {target.backend.number}")
            control.close()
        elif target is not None:
            target.client.shutdown(socket.SHUT_RDWR)
        session.client.sendall(b"\x07\x00\x00\x01\x00\x00\x00\x02\x00\x00\x00")
        return True

    # Answers.

    def _relay_answer(self, session: _Session) -> None:
        """Relay the answer to a statement as a whole: some drivers hold the interpreter's lock while they read rows."""
        session.answer = bytearray()
        while self._take_result(session):
            pass
        session.client.sendall(session.answer)

    def _take_result(self, session: _Session) -> bool:
        """Take one result; returns whether another follows."""
        first = self._take_packet(session)
        kind = first[4]
        if kind == 0xFF:
            return False
        if kind == 0 or (kind == 0xFE and len(first) < 13):
            return self._note_status(session, _status_of_ok(first) if kind == 0 else first[7:9])
        # The columns, and then the rows, end with a packet of their own.
        for _ in range(2):
            while True:
                packet = self._take_packet(session)
                if packet[4] == 0xFF:
                    return False
                if packet[4] == 0xFE and len(packet) < 13:
                    break
        return self._note_status(session, packet[7:9])

    def _note_status(self, session: _Session, status: bytes) -> bool:
        flags = int.from_bytes(status, "little")
        session.backend.is_in_transaction = bool(flags & _IN_TRANSACTION)
        return bool(flags & _MORE_RESULTS)

    def _take_packet(self, session: _Session) -> bytes:
        """Take one packet of the server; ends with the client, too."""
        backend = session.backend.socket
        while backend not in select.select([backend, session.client], [], [])[0]:
            if not session.client.recv(1, socket.MSG_PEEK):
                raise _Gone
        packet = _receive(backend)
        session.answer += packet
        return packet


def _status_of_ok(packet: bytes) -> bytes:
    """The flags in an OK packet, which come after two numbers of variable length."""
    at = 5
    for _ in range(2):
        at += {0xFC: 3, 0xFD: 4, 0xFE: 9}.get(packet[at], 1)
    return packet[at : at + 2]


@contextmanager
def stand_in_proxy(
    server: tuple[str, int], settings: dict[str, object], *, multiplexes: bool, first_id: int
) -> Iterator[StandInProxy]:
    """A proxy to the server; ``settings`` are those of a connection of its own."""
    proxy = StandInProxy(server, settings, multiplexes=multiplexes, first_id=first_id)
    try:
        yield proxy
    finally:
        proxy.close()
