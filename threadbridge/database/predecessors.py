"""Ends what killed processes left running in the database: each process lists its connections in a file.

A process keeps its file locked (``flock(2)``). The kernel releases the lock however the process ends. So a list whose
lock is free is a dead process's, even if its process id has been reused.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import secrets
import threading
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

from threadbridge.common import forks
from threadbridge.common.private_directory import run_directory
from threadbridge.common.repeated_log import RepeatedLog
from threadbridge.database.driver import ConnectionSettings, Database, Identity
from threadbridge.database.stopper import Orphan, Stopper

logger = logging.getLogger("threadbridge")

# Seconds between two searches for lists of dead processes; the first is at the start.
INTERVAL = 5.0
# Bytes for each connection in a file: enough for the longest server name, and less than a page, so that each is written
# whole or not at all.
SLOT = 2048
_SECRETS = ("passwd", "password")
_PLAIN = (str, bytes, int, float, type(None))


class ConnectionList:
    """Lists a pool's connections for other processes, and ends the connections on the lists of dead processes.

    These processes have the same user and working directory on this machine, since it was booted, and their pools
    connect in the same way. A lock guards whether it has begun, and the process's own file.
    """

    def __init__(
        self, settings: ConnectionSettings, stopper: Stopper, database_by: Callable[[str], Database | None]
    ) -> None:
        self._prefix = f"connections-{_digest(settings)}-"
        self._stopper = stopper
        self._database_by = database_by
        # Of the lists; None: a private one among the temporary files.
        self.directory: str | None = None
        self._has_begun = False
        self._end_search: Callable[[], None] = lambda: None
        self._own: _OwnFile | None = None
        self._lock = threading.Lock()
        self._unusable = RepeatedLog(logger, 600)

    def begin(self, directory: str | None = None) -> None:
        """Search for lists of dead processes, now and every `INTERVAL` seconds. Any thread; returns at once."""
        with self._lock:
            if not self._has_begun:
                self._has_begun = True
                self.directory = directory
                self._end_search = self._stopper.repeat(self._search, INTERVAL)

    def end(self) -> None:
        """Search no more. Any thread."""
        with self._lock:
            self._has_begun = True
            self._end_search()

    def enter(self, database: Database, identity: Identity) -> Entry | None:
        """List a connection while the returned object exists; None if it cannot be found or listed. Any thread."""
        self.begin()
        if not identity.is_findable:
            return None
        try:
            with self._lock:
                if self._own is None:
                    self._own = _OwnFile(run_directory(self.directory), self._prefix, database.driver)
                return self._own.add(identity)
        except (OSError, ValueError) as error:
            message = "cannot list this process's connections: %s. If it is killed, no other process ends its queries"
            self._unusable.log(logging.WARNING, message, error)
            return None

    def remove(self) -> None:
        """Remove this process's list: nothing is left to end. Any thread."""
        with self._lock:
            own, self._own = self._own, None
        if own is not None:
            own.remove()

    def _search(self) -> None:
        try:
            directory = run_directory(self.directory)
            with self._lock:
                if self._own is not None:
                    self._own.preserve()
            for name in os.listdir(directory):
                if name.startswith(self._prefix):
                    with _list_of_dead(directory / name) as text:
                        if text is not None and self._take_over(text):
                            (directory / name).unlink()
        except (OSError, ValueError) as error:
            self._unusable.log(logging.WARNING, "cannot look for connections left by killed processes: %s", error)

    def _take_over(self, text: str) -> bool:
        """Take over a dead process's connections; returns whether its list is no longer needed."""
        try:
            # The file may be empty, if the process died just after creating it.
            header, *lists = [json.loads(line) for line in text.splitlines() if line.strip()] or [{}]
            database = self._database_by(header["driver"]) if lists else None
            if database is None:
                return True
            identities = [database.identity(*values) for values in lists]
        except (ValueError, TypeError, KeyError) as error:
            logger.error("cannot read a dead process's list of connections, so they are not ended: %r", error)
            return True
        orphans = [Orphan(database, each, self.enter(database, each), header["pid"]) for each in identities]
        self._stopper.kill(orphans)
        return all(orphan.entry is not None for orphan in orphans)


class Entry:
    """A connection's slot in the file; free again once this object is gone."""

    def __init__(self, own: _OwnFile, slot: int) -> None:
        self._own = own
        self._slot = slot

    def __del__(self) -> None:
        # The text in the slot stays: to end that connection again does no harm.
        self._own.free.append(self._slot)


class _OwnFile:
    """This process's list: a slot about the process, and one for each connection. `ConnectionList`'s lock guards it."""

    def __init__(self, directory: Path, prefix: str, driver: str) -> None:
        self._directory = directory
        self._prefix = prefix
        self._pid = os.getpid()
        # Slots come back in any thread; a deque's methods need no lock.
        self.free: deque[int] = deque()
        self._count = 1
        self._path, self.descriptor = self._create()
        forks.connects(self)
        self._write(0, {"pid": self._pid, "driver": driver})

    def _create(self) -> tuple[Path, int]:
        while True:
            path = self._directory / f"{self._prefix}{secrets.token_hex(8)}"
            with contextlib.ExitStack() as stack:
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                stack.callback(os.close, descriptor)
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                # Another process may have found it before it was locked, and removed it.
                if os.fstat(descriptor).st_nlink:
                    stack.pop_all()
                    return path, descriptor

    def add(self, identity: Identity) -> Entry:
        """Write a connection to the file. Under the lock. Raises ``OSError``, or ``ValueError`` if it is too long."""
        is_reused = bool(self.free)
        slot = self.free[0] if is_reused else self._count
        self._write(slot, identity)
        if is_reused:
            self.free.popleft()
        else:
            self._count += 1
        return Entry(self, slot)

    def _write(self, slot: int, content: object) -> None:
        text = json.dumps(content).encode()
        if len(text) >= SLOT:
            raise ValueError(f"{len(text)} bytes are too many for a connection: {content}")
        os.pwrite(self.descriptor, text.ljust(SLOT - 1) + b"\n", slot * SLOT)

    def preserve(self) -> None:
        """Touch the file, so that no cleaner removes it; if one did, create it again. Under the lock."""
        if os.fstat(self.descriptor).st_nlink:
            os.utime(self.descriptor)
            return
        text = os.pread(self.descriptor, self._count * SLOT, 0)
        lost = self.descriptor
        self._path, self.descriptor = self._create()
        os.pwrite(self.descriptor, text, 0)
        os.close(lost)

    def remove(self) -> None:
        """Remove the file, unless this is a forked process."""
        if self._pid == os.getpid():
            self._path.unlink(missing_ok=True)

    def __del__(self) -> None:
        # All connections are gone. While the interpreter shuts down, or if `__init__` failed, attributes are missing.
        with contextlib.suppress(Exception):
            self.remove()
            os.close(self.descriptor)


@contextlib.contextmanager
def _list_of_dead(path: Path) -> Iterator[str | None]:
    """The text of a dead process's list, locked meanwhile; None if the process lives, or another one has the list."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        yield None
        return
    with os.fdopen(descriptor) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
        else:
            yield file.read() if os.fstat(descriptor).st_nlink else None


def _digest(settings: ConnectionSettings) -> str:
    """A name shared by all processes that end each other's connections."""
    connect = settings.connect
    kwargs = {name: value for name, value in settings.kwargs.items() if name not in _SECRETS}
    shared: list[object] = [
        _read(lambda: Path("/proc/sys/kernel/random/boot_id").read_text().strip()),
        _read(os.getcwd),
        getattr(connect, "__module__", ""),
        getattr(connect, "__qualname__", ""),
        *(each for each in settings.args if isinstance(each, _PLAIN)),
        *sorted((name, repr(value)) for name, value in kwargs.items() if isinstance(value, _PLAIN)),
    ]
    return hashlib.sha256(repr(shared).encode()).hexdigest()[:16]


def _read(read: Callable[[], str]) -> str:
    with contextlib.suppress(OSError):
        return read()
    return ""
