"""The store of requests with an ``Idempotency-Key`` and their answers: one SQLite file for all processes of a host."""

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
from pathlib import Path

from threadbridge.common import forks
from threadbridge.common.repeated_log import RepeatedLog
from threadbridge.worker import idempotency_file

logger = logging.getLogger("threadbridge")
_failures, _recoveries, _refusals = (RepeatedLog(logger) for _ in range(3))

# Bytes that a key counts besides its answer: about what it takes with its indexes.
ENTRY_SIZE = 1024
# How many expired keys a request removes, and how many more if it finds no room: none has to remove a flood of them.
SWEEPS = (50, 1000)


class StoreError(Exception):
    """The store cannot be used at present; the message says why."""


class NoRoom(StoreError):
    """The client may have no more keys at present."""


@dataclass(frozen=True)
class Answer:
    """What the application answered: WSGI's status line and headers, and the whole body."""

    status: str
    headers: Sequence[tuple[str, str]]
    body: bytes


@dataclass(frozen=True)
class FirstRequest:
    """What the store knows of the first request with a key."""

    fingerprint: bytes
    # Its name in the logs.
    request_id: str
    # The answer to repeat; or a note, why there is none; or None while it is running.
    outcome: Answer | str | None


class IdempotencyStore:
    """Records which requests with a key have begun and what was answered, across processes and restarts.

    Each transaction is on the disk (fsync) before the method returns. A lock guards the only connection, which is
    opened on first use. Raises ``ValueError`` if the file cannot be created there.

    :param path: the SQLite file, on a local disk.
    :param age: seconds for which an outcome is kept.
    :param size: maximum bytes of all outcomes. Beyond it the oldest answers are dropped, but not their keys. A client
        may have as many keys as there is room left for, so a single client at most half of all.
    """

    def __init__(self, path: str, *, age: float, size: int) -> None:
        directory = os.path.dirname(path) or "."
        if os.path.isdir(path) or not os.access(directory, os.W_OK | os.X_OK):
            raise ValueError(f"idempotency_store={path}: expected a file in a directory in which this user may write")
        self._path = os.path.abspath(path)
        self._age = age
        self._size = size
        self._lock = threading.Lock()
        self._file = idempotency_file.StoreFile(self._path)
        # Outcomes that could not be written; the next transaction writes them. Otherwise, the keys would count as
        # running as long as this process is alive.
        self._unwritten: dict[bytes, str | None] = {}
        self._owner = ""
        self._has_failed = False
        self._is_copy = False
        forks.copies(self)

    def become_copy(self) -> None:
        """Leave the store alone in a forked process: requests end in its parent, which also has the connection."""
        self._is_copy = True

    def begin(self, key: bytes, fingerprint: bytes, request_id: str, client: str) -> FirstRequest | None:
        """Record that a request begins, and return None; or return the first request with this key.

        Raises `StoreError`, and `NoRoom` if the client may have no more keys; then nothing is recorded.
        """
        # Hashed, so that long names take no more room.
        holder = hashlib.sha256(client.encode(errors="surrogatepass")).digest()
        with self._transaction() as connection:
            first = self._find(connection, key)
            has_room = first is not None or self._make_room(connection, holder)
            if first is None and has_room:
                # Found out once: it takes a file descriptor, and there may be none left.
                self._owner = self._owner or owner_of(os.getpid()) or f"{os.getpid()} -"
                # It may be there, expired.
                self._write(connection, key, None)
                connection.execute(
                    "INSERT INTO outcomes VALUES (?, ?, ?, ?, NULL, NULL, NULL, ?, '', ?)",
                    (key, fingerprint, self._owner, time.time() + self._age, request_id, ENTRY_SIZE),
                )
                connection.execute("INSERT INTO holders VALUES (?, ?)", (key, holder))
                self._drop_answers(connection)
        if self._has_failed:
            self._has_failed = False
            _recoveries.log(logging.WARNING, "the idempotency store %s can be used again", self._path)
        if not has_room:
            # Not raised above, so that the removal of expired keys is committed.
            refusal = "was not run: its client has as many keys in the idempotency store %s as there is room left"
            _refusals.log(logging.WARNING, f"request %s {refusal}", request_id, self._path)
            raise NoRoom
        return first

    def end(self, key: bytes, outcome: Answer | str | None) -> None:
        """Record an outcome (see `FirstRequest`), or None to let the request run again. Failures are only logged."""
        if self._is_copy:
            return
        try:
            with self._transaction() as connection:
                self._write(connection, key, outcome)
        except StoreError:
            # An answer would take too much memory for so long.
            self._unwritten[key] = "its answer could not be stored" if isinstance(outcome, Answer) else outcome

    def close(self) -> None:
        """Close the file, after all requests have ended."""
        with self._lock:
            self._file.close()

    def _find(self, connection: sqlite3.Connection, key: bytes) -> FirstRequest | None:
        found = connection.execute(
            "SELECT fingerprint, owner, expires, status, headers, body, note, request_id FROM outcomes WHERE key = ?",
            (key,),
        ).fetchone()
        if found is None:
            return None
        fingerprint, owner, expires, status, headers, body, note, request_id = found
        if _is_alive(owner):
            return FirstRequest(fingerprint, request_id, None)
        if expires <= time.time():
            return None
        if status is not None:
            answer = Answer(status, [tuple(each) for each in json.loads(headers)], body)
            return FirstRequest(fingerprint, request_id, answer)
        if owner:
            note = "its process ended before it had answered: whether it has changed anything is not known"
        return FirstRequest(fingerprint, request_id, note)

    def _write(self, connection: sqlite3.Connection, key: bytes, outcome: Answer | str | None) -> None:
        if outcome is None:
            connection.execute("DELETE FROM outcomes WHERE key = ?", (key,))
            return
        status, headers, body, note, size = None, None, None, outcome, ENTRY_SIZE
        if isinstance(outcome, Answer):
            status, headers, body, note = outcome.status, json.dumps(list(outcome.headers)), outcome.body, ""
            size += len(headers) + len(body)
        connection.execute(
            "UPDATE outcomes SET owner = '', expires = ?, status = ?, headers = ?, body = ?, note = ?, size = ? "
            "WHERE key = ?",
            (time.time() + self._age, status, headers, body, note, size, key),
        )
        self._drop_answers(connection)

    def _make_room(self, connection: sqlite3.Connection, holder: bytes) -> bool:
        """Remove expired keys, the oldest first; returns whether the client may then have another key."""
        for limit in SWEEPS:
            now = time.time()
            expired = connection.execute(
                "SELECT key, owner FROM outcomes WHERE expires <= ? ORDER BY expires LIMIT ?", (now, limit)
            ).fetchall()
            for key, owner in expired:
                if _is_alive(owner):
                    # If it were removed, a repetition would run while the request is still running.
                    connection.execute("UPDATE outcomes SET expires = ? WHERE key = ?", (now + self._age, key))
                else:
                    self._write(connection, key, None)
            keys, held = connection.execute(
                "SELECT keys, COALESCE((SELECT keys FROM clients WHERE client = ?), 0) FROM total", (holder,)
            ).fetchone()
            # Compared with what is left: with a fixed share, a few clients would have everything.
            if held < self._size // ENTRY_SIZE - keys:
                return True
        return False

    def _drop_answers(self, connection: sqlite3.Connection) -> None:
        """Drop the oldest answers until the rest fits, but keep their keys."""
        while connection.execute("SELECT 1 FROM total WHERE bytes > ?", (self._size,)).fetchone():
            if not connection.execute(
                "UPDATE outcomes SET status = NULL, headers = NULL, body = NULL, size = ?, "
                "note = 'its answer was dropped to make room for later ones' WHERE key IN "
                "(SELECT key FROM outcomes WHERE status IS NOT NULL ORDER BY expires LIMIT 10)",
                (ENTRY_SIZE,),
            ).rowcount:
                return

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Lock the store, and commit at the end of the block. Raises `StoreError`."""
        timeout = idempotency_file.BUSY_TIMEOUT
        if not self._lock.acquire(timeout=timeout):
            raise self._failed(f"other threads of this process have used it for {timeout:g} s")
        try:
            with self._file.open() as connection:
                connection.execute("BEGIN IMMEDIATE")
                late = dict(self._unwritten)
                for key, outcome in late.items():
                    self._write(connection, key, outcome)
                yield connection
            # Before the lock is released: a request that begins again must not be forgotten.
            for key in late:
                del self._unwritten[key]
        except (sqlite3.Error, OSError, ValueError) as error:
            # Whatever is wrong, the next transaction begins with a new connection.
            self._file.close()
            raise self._failed(error) from error
        finally:
            self._lock.release()

    def _failed(self, reason: object) -> StoreError:
        self._has_failed = True
        _failures.log(logging.ERROR, "the idempotency store %s cannot be used: %s", self._path, reason)
        return StoreError(str(reason))


def owner_of(pid: int) -> str:
    """A process, by its number and start time, which no later one shares; "" if there is none. Raises ``OSError``."""
    try:
        return f"{pid} {Path(f'/proc/{pid}/stat').read_bytes().rpartition(b')')[2].split()[19].decode()}"
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _is_alive(owner: str) -> bool:
    return owner != "" and owner_of(int(owner.split()[0])) == owner
