"""The SQLite file in which `idempotency_store` keeps its outcomes: its tables, and how it comes about."""

from __future__ import annotations

import fcntl
import os
import sqlite3
import stat
import time
from contextlib import closing, suppress
from pathlib import Path

# Seconds that a thread waits for others that use the store; a transaction takes milliseconds.
BUSY_TIMEOUT = 5.0
VERSION = 1

_SCHEMA = """
CREATE TABLE outcomes (
    key BLOB PRIMARY KEY,
    fingerprint BLOB NOT NULL,
    owner TEXT NOT NULL,
    expires REAL NOT NULL,
    status TEXT,
    headers TEXT,
    body BLOB,
    request_id TEXT NOT NULL,
    note TEXT NOT NULL,
    size INTEGER NOT NULL
);
CREATE INDEX outcomes_by_expiry ON outcomes (expires);
CREATE INDEX outcomes_with_answers ON outcomes (expires) WHERE status IS NOT NULL;
CREATE TABLE total (bytes INTEGER NOT NULL);
INSERT INTO total VALUES (0);
CREATE TRIGGER added AFTER INSERT ON outcomes BEGIN UPDATE total SET bytes = bytes + NEW.size; END;
CREATE TRIGGER changed AFTER UPDATE OF size ON outcomes BEGIN
    UPDATE total SET bytes = bytes + NEW.size - OLD.size;
END;
CREATE TRIGGER removed AFTER DELETE ON outcomes BEGIN UPDATE total SET bytes = bytes - OLD.size; END;
"""

# How many keys there are, and how many each client has. An earlier version knows nothing of it and can use the file all
# the same: during an update processes of both do, and none of the keys may be forgotten.
_COUNTS = (
    "ALTER TABLE total ADD COLUMN keys INTEGER NOT NULL DEFAULT 0",
    "UPDATE total SET keys = (SELECT COUNT(*) FROM outcomes)",
    "CREATE TABLE clients (client BLOB PRIMARY KEY, keys INTEGER NOT NULL) WITHOUT ROWID",
    "CREATE TABLE holders (key BLOB PRIMARY KEY, client BLOB NOT NULL) WITHOUT ROWID",
    "CREATE TRIGGER key_added AFTER INSERT ON outcomes BEGIN UPDATE total SET keys = keys + 1; END",
    """CREATE TRIGGER key_removed AFTER DELETE ON outcomes BEGIN
        UPDATE total SET keys = keys - 1;
        DELETE FROM holders WHERE key = OLD.key;
    END""",
    """CREATE TRIGGER holder_added AFTER INSERT ON holders BEGIN
        INSERT INTO clients VALUES (NEW.client, 1) ON CONFLICT (client) DO UPDATE SET keys = keys + 1;
    END""",
    """CREATE TRIGGER holder_removed AFTER DELETE ON holders BEGIN
        UPDATE clients SET keys = keys - 1 WHERE client = OLD.client;
        DELETE FROM clients WHERE client = OLD.client AND keys = 0;
    END""",
)


class StoreFile:
    """The file and this process's one connection to it, which its owner guards by a lock.

    :param path: absolute. The file is made when it is missing, readable by its user only; nothing is opened before the
        first use.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._connection: sqlite3.Connection | None = None
        # Of the open file: its device and number.
        self._opened: tuple[int, int] | None = None

    def open(self) -> sqlite3.Connection:
        """The connection, in autocommit mode. Raises ``sqlite3.Error``, ``OSError`` or ``ValueError``.

        After any of these, `close`.
        """
        identity = self._identity()
        if self._connection is not None and self._opened == identity:
            return self._connection
        # Somebody has moved the old file away.
        self.close()
        if identity is None:
            self._make()
        connection = self._connection = self._connect(self._path)
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version != VERSION:
            raise ValueError(f"it has the format {version}, this version of threadbridge needs {VERSION}; move it away")
        self._count(connection)
        self._opened = self._identity()
        return connection

    @staticmethod
    def _count(connection: sqlite3.Connection) -> None:
        """See to it that keys are counted, in a new file and in one of an earlier version."""
        connection.execute("BEGIN IMMEDIATE")
        if connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'clients'").fetchone() is None:
            for statement in _COUNTS:
                connection.execute(statement)
        connection.execute("COMMIT")

    def close(self) -> None:
        """Close the connection; the next use opens another."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
        self._opened = None

    def _identity(self) -> tuple[int, int] | None:
        try:
            status = os.stat(self._path)
        except FileNotFoundError:
            return None
        if status.st_uid not in (os.geteuid(), 0) or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise ValueError("others may write to it, and so answer requests; chown and chmod 600, or move it away")
        return status.st_dev, status.st_ino

    def _make(self) -> None:
        """Make the file, complete before any process finds it under its name."""
        new = f"{self._path}.new"
        directory = os.open(os.path.dirname(self._path), os.O_RDONLY | os.O_CLOEXEC)
        try:
            # Several processes may have missed the file at once.
            self._lock_directory(directory)
            if os.path.exists(self._path):
                return
            # What a file that was removed has left would be taken for part of this one.
            for left in (new, f"{self._path}-wal", f"{self._path}-shm"):
                with suppress(FileNotFoundError):
                    os.unlink(left)
            os.close(os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            with closing(self._connect(new)) as connection:
                connection.executescript(_SCHEMA)
                connection.execute(f"PRAGMA user_version = {VERSION}")
                # Last: what is in the log only, because the disk is full, would stay behind.
                connection.execute("PRAGMA journal_mode = WAL")
            os.rename(new, self._path)
        finally:
            # Or a process that was forked meanwhile would keep it.
            fcntl.flock(directory, fcntl.LOCK_UN)
            os.close(directory)

    @staticmethod
    def _lock_directory(directory: int) -> None:
        """Lock it, but do not wait for ever: whoever may read it can lock it, too."""
        give_up_at = time.monotonic() + BUSY_TIMEOUT
        while True:
            try:
                fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() > give_up_at:
                    raise
            time.sleep(0.02)

    def _connect(self, path: str) -> sqlite3.Connection:
        connection = sqlite3.connect(
            # Never made here: it would be empty, and stay so.
            f"{Path(path).as_uri()}?mode=rw",
            uri=True,
            timeout=BUSY_TIMEOUT,
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute(f"PRAGMA journal_size_limit = {16 * 1024 * 1024}")
        except BaseException:
            # The exception has it in a frame: it would stay open until garbage is collected.
            connection.close()
            raise
        return connection
