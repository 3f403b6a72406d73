"""The store of outcomes for requests with an ``Idempotency-Key``: one SQLite file for all processes of a host."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, TypeAlias

from threadbridge.common import forks
from threadbridge.common.repeated_log import RepeatedLog
from threadbridge.worker import idempotency_file
from threadbridge.worker.idempotency_file import StoreFile

logger = logging.getLogger("threadbridge")

# Bytes that an entry counts besides its answer: about what it takes with its indexes.
ENTRY_SIZE = 1024
# How many expired entries a request removes, and how many more if it finds no room: none pays for all of a flood.
SWEEP = 50
LONG_SWEEP = 1000

_NOT_STORED = "its answer could not be stored"

Headers: TypeAlias = Sequence[tuple[str, str]]


class StoreError(Exception):
    """The store cannot be used at present; the message says why."""


class NoRoom(StoreError):
    """There is no room for another key of this client's."""


@dataclass(frozen=True)
class Answer:
    """What the application answered: WSGI's status line and headers, and the whole body."""

    status: str
    headers: Headers
    body: bytes


@dataclass(frozen=True)
class Known:
    """What the store has under a key.

    :param state: ``running`` in a process that lives; ``lost`` with one that has died; ``ended``.
    :param answer: of one that has ended, unless it was not kept.
    :param note: why it was not.
    :param request_id: the name of the request in the logs.
    """

    fingerprint: bytes
    state: Literal["running", "lost", "ended"]
    answer: Answer | None
    note: str
    request_id: str


class IdempotencyStore:
    """Remembers which keyed requests have begun and what was answered, across processes and restarts.

    :param path: the SQLite file; it is made when it is missing, readable by its user only. Its directory must be on a
        local disk.
    :param age: seconds for which an outcome is kept.
    :param size: bytes that all outcomes may take. Beyond it the oldest answers go, but not their keys. A client may
        have as many keys as there is room left for: one alone half of all, so that there is always room for others.

    Each transaction is on the disk (fsync) before the method returns. One connection for the process, which a lock
    guards; nothing is opened before the first use. Raises ``ValueError`` when the file cannot be there.
    """

    def __init__(self, path: str, *, age: float, size: int) -> None:
        directory = os.path.dirname(path) or "."
        if os.path.isdir(path) or not os.access(directory, os.W_OK | os.X_OK):
            raise ValueError(f"idempotency_store={path}: expected a file in a directory in which this user may write")
        self._path = os.path.abspath(path)
        self._age = age
        self._size = size
        self._lock = threading.Lock()
        self._file = StoreFile(self._path)
        # Endings that could not be written: a note, or None for a key that is to be forgotten. Without them a key would
        # count as running for as long as this process.
        self._unwritten: dict[bytes, str | None] = {}
        self._owner = ""
        self._failures = RepeatedLog(logger)
        self._recoveries = RepeatedLog(logger)
        self._refusals = RepeatedLog(logger)
        self._has_failed = False
        self._is_copy = False
        forks.copies(self)

    def become_copy(self) -> None:
        """This is a forked process: requests end in its parent, which has the connection, too."""
        self._is_copy = True

    def begin(self, key: bytes, fingerprint: bytes, request_id: str, client: str) -> Known | None:
        """Note that a request of a client's begins, or give what is known of an earlier one with this key.

        None: there was none, and this one is noted, durably. Raises `StoreError`, and `NoRoom` if the client has its
        share of the keys; then nothing is noted.
        """
        now = time.time()
        is_refused = False
        late: list[tuple[bytes, str | None]] = []
        try:
            with self._transaction() as connection:
                late = list(self._unwritten.items())
                for unwritten, note in late:
                    # Before the lock is free: if its request begins again, that must not be forgotten.
                    del self._unwritten[unwritten]
                    if note is None:
                        self._forget(connection, unwritten)
                    else:
                        self._end(connection, unwritten, None, note)
                known = self._known(connection, key, now)
                if known is None:
                    # A name of any length takes the same room.
                    holder = hashlib.sha256(client.encode(errors="surrogatepass")).digest()
                    # Raised only below: what has expired stays removed.
                    is_refused = not self._make_room(connection, holder, now)
                    if not is_refused:
                        self._add(connection, key, fingerprint, request_id, holder, now)
        except StoreError:
            self._unwritten.update(late)
            raise
        if self._has_failed:
            self._has_failed = False
            self._recoveries.log(logging.WARNING, "the idempotency store %s can be used again", self._path)
        if is_refused:
            self._refusals.log(
                logging.WARNING,
                "request %s was not run: its client has as many keys in the idempotency store %s as there is room left",
                request_id,
                self._path,
            )
            raise NoRoom
        return known

    def _known(self, connection: sqlite3.Connection, key: bytes, now: float) -> Known | None:
        found = connection.execute(
            "SELECT fingerprint, owner, expires, status, headers, body, note, request_id FROM outcomes WHERE key = ?",
            (key,),
        ).fetchone()
        if found is None:
            return None
        fingerprint, owner, expires, status, headers, body, note, request_id = found
        state: Literal["running", "lost", "ended"] = "running" if _lives(owner) else "lost" if owner else "ended"
        if state != "running" and expires <= now:
            return None
        answer = None if status is None else Answer(status, [tuple(each) for each in json.loads(headers)], body)
        return Known(fingerprint, state, answer, note, request_id)

    def _add(
        self,
        connection: sqlite3.Connection,
        key: bytes,
        fingerprint: bytes,
        request_id: str,
        holder: bytes,
        now: float,
    ) -> None:
        # Once: it takes a file descriptor, of which none may be left.
        self._owner = self._owner or owner_of(os.getpid()) or f"{os.getpid()} -"
        self._forget(connection, key)
        self._drop_answers(connection, ENTRY_SIZE)
        connection.execute(
            "INSERT INTO outcomes VALUES (?, ?, ?, ?, NULL, NULL, NULL, ?, '', ?)",
            (key, fingerprint, self._owner, now + self._age, request_id, ENTRY_SIZE),
        )
        connection.execute("INSERT INTO holders VALUES (?, ?)", (key, holder))

    def end(self, key: bytes, answer: Answer | None, note: str = "") -> None:
        """Note how the request with this key has ended. Never raises: what cannot be written is logged.

        :param answer: None if there is none to be repeated; ``note`` says why.
        """
        if self._is_copy:
            return
        try:
            with self._transaction() as connection:
                self._end(connection, key, answer, note)
        except StoreError:
            # It is written with the next request that begins; the answer itself is not kept in memory for so long.
            self._unwritten[key] = _NOT_STORED

    def forget(self, key: bytes) -> None:
        """Let the request with this key be run again. Never raises."""
        if self._is_copy:
            return
        try:
            with self._transaction() as connection:
                self._forget(connection, key)
        except StoreError:
            self._unwritten[key] = None

    @staticmethod
    def _forget(connection: sqlite3.Connection, key: bytes) -> None:
        connection.execute("DELETE FROM outcomes WHERE key = ?", (key,))

    def _end(self, connection: sqlite3.Connection, key: bytes, answer: Answer | None, note: str) -> None:
        status, headers, body = None, None, None
        size = ENTRY_SIZE
        if answer is not None:
            status, headers, body = answer.status, json.dumps(list(answer.headers)), answer.body
            size += len(headers) + len(body)
        connection.execute(
            "UPDATE outcomes SET owner = '', expires = ?, status = ?, headers = ?, body = ?, note = ?, size = ? "
            "WHERE key = ?",
            (time.time() + self._age, status, headers, body, note, size, key),
        )
        self._drop_answers(connection)

    def _make_room(self, connection: sqlite3.Connection, holder: bytes, now: float) -> bool:
        """Remove what has expired; whether the client may have another key then."""
        self._sweep(connection, now, SWEEP)
        if self._has_room(connection, holder):
            return True
        self._sweep(connection, now, LONG_SWEEP)
        return self._has_room(connection, holder)

    def _has_room(self, connection: sqlite3.Connection, holder: bytes) -> bool:
        # Of what is left, and not a fixed share: a few clients with that would have everything.
        keys, held = connection.execute(
            "SELECT keys, COALESCE((SELECT keys FROM clients WHERE client = ?), 0) FROM total", (holder,)
        ).fetchone()
        return bool(held < self._size // ENTRY_SIZE - keys)

    def _sweep(self, connection: sqlite3.Connection, now: float, limit: int) -> None:
        """Remove the oldest of what has expired."""
        expired = connection.execute(
            "SELECT key, owner FROM outcomes WHERE expires <= ? ORDER BY expires LIMIT ?", (now, limit)
        ).fetchall()
        for key, owner in expired:
            if _lives(owner):
                # It runs still: to forget it would be to let it run twice.
                connection.execute("UPDATE outcomes SET expires = ? WHERE key = ?", (now + self._age, key))
            else:
                self._forget(connection, key)

    def _drop_answers(self, connection: sqlite3.Connection, room: int = 0) -> None:
        """Forget the oldest answers until there is room, but not that their requests have run."""
        while self._total(connection) + room > self._size:
            dropped = connection.execute(
                "UPDATE outcomes SET status = NULL, headers = NULL, body = NULL, size = ?, "
                "note = 'its answer was dropped to make room for later ones' WHERE key IN "
                "(SELECT key FROM outcomes WHERE status IS NOT NULL ORDER BY expires LIMIT ?)",
                (ENTRY_SIZE, 10),
            )
            if dropped.rowcount == 0:
                return

    @staticmethod
    def _total(connection: sqlite3.Connection) -> int:
        (total,) = connection.execute("SELECT bytes FROM total").fetchone()
        return int(total)

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """A transaction that nobody else writes beside, committed at the end of the block. Raises `StoreError`."""
        timeout = idempotency_file.BUSY_TIMEOUT
        if not self._lock.acquire(timeout=timeout):
            raise self._failed(StoreError(f"other threads of this process have used it for {timeout:g} s"))
        try:
            connection = self._file.open()
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
        except (sqlite3.Error, OSError, ValueError, StoreError) as error:
            if not isinstance(error, StoreError):
                # Whatever is wrong, the next one begins with a new connection.
                self._file.close()
            raise self._failed(error) from error
        finally:
            self._lock.release()

    def _failed(self, error: Exception) -> StoreError:
        self._has_failed = True
        self._failures.log(logging.ERROR, "the idempotency store %s cannot be used: %s", self._path, error)
        return StoreError(str(error))

    def close(self) -> None:
        """Close the file, after all requests have ended."""
        with self._lock:
            self._file.close()


def owner_of(pid: int) -> str:
    """A process by its number and the time of its start, which another one with its number does not share; "" if there
    is none. Raises ``OSError`` if that cannot be found out.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return f"{pid} {file.read().rpartition(b')')[2].split()[19].decode()}"
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _lives(owner: str) -> bool:
    return owner != "" and owner_of(int(owner.split()[0])) == owner
