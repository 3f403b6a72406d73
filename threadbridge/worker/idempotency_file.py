"""The SQLite file of the idempotency store: its tables, how it is created and opened."""

from __future__ import annotations

import fcntl
import os
import sqlite3
import stat
import time
from contextlib import closing
from pathlib import Path

# Seconds that a thread waits for others to finish with the store; a transaction takes milliseconds.
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

# Counts the keys, in total and by client. An earlier version does not know these tables, yet during an update processes
# of both versions use the file.
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
    """The file, by its absolute path, and this process's only connection to it; callers guard it with a lock."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._connection: sqlite3.Connection | None = None
        # The device and inode of the open file.
        self._opened: tuple[int, int] | None = None

    def open(self) -> sqlite3.Connection:
        """Return the connection, in autocommit mode; create the file if it is missing, readable by its user only.

        Raises ``sqlite3.Error``, ``OSError`` or ``ValueError``; call `close` after any of them.
        """
        identity = self._identity()
        if self._connection is not None and self._opened == identity:
            return self._connection
        # The old file was moved away.
        self.close()
        if identity is None:
            self._create()
        connection = self._connection = self._connect(self._path)
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(f"PRAGMA journal_size_limit = {16 * 1024 * 1024}")
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version != VERSION:
            raise ValueError(f"it has the format {version}, this version of threadbridge needs {VERSION}; move it away")
        with connection:
            connection.execute("BEGIN IMMEDIATE")
            if connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'clients'").fetchone() is None:
                for statement in _COUNTS:
                    connection.execute(statement)
        self._opened = self._identity()
        return connection

    def close(self) -> None:
        """Close the connection; the next use opens another."""
        connection, self._connection, self._opened = self._connection, None, None
        if connection is not None:
            connection.close()

    def _identity(self) -> tuple[int, int] | None:
        try:
            status = os.stat(self._path)
        except FileNotFoundError:
            return None
        if status.st_uid not in (os.geteuid(), 0) or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise ValueError("others may write to it, and so answer requests; chown and chmod 600, or move it away")
        return status.st_dev, status.st_ino

    def _create(self) -> None:
        """Create the file, so that no process finds it under its name before it is complete."""
        new = f"{self._path}.new"
        directory = os.open(os.path.dirname(self._path), os.O_RDONLY)
        try:
            # Other processes may be creating the file. The wait is bounded: any process can hold this lock.
            give_up_at = time.monotonic() + BUSY_TIMEOUT
            while True:
                try:
                    fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > give_up_at:
                        raise
                time.sleep(0.02)
            if os.path.exists(self._path):
                return
            # SQLite would apply the log of a removed file to this one.
            for left in (new, f"{self._path}-wal", f"{self._path}-shm"):
                Path(left).unlink(missing_ok=True)
            Path(new).touch(0o600, exist_ok=False)
            with closing(self._connect(new)) as connection:
                connection.executescript(_SCHEMA)
                connection.execute(f"PRAGMA user_version = {VERSION}")
                # Last: on a full disk, what is only in the log would not be in the renamed file.
                connection.execute("PRAGMA journal_mode = WAL")
            os.rename(new, self._path)
        finally:
            # Closing does not unlock it if a process was forked meanwhile.
            fcntl.flock(directory, fcntl.LOCK_UN)
            os.close(directory)

    @staticmethod
    def _connect(path: str) -> sqlite3.Connection:
        return sqlite3.connect(
            # Not created here: it would be empty, and stay so.
            f"{Path(path).as_uri()}?mode=rw",
            uri=True,
            timeout=BUSY_TIMEOUT,
            isolation_level=None,
            check_same_thread=False,
        )
