"""Ends what killed processes left running in the database; each process lists its connections in a file.

A process keeps its file locked (``flock(2)``). The kernel lets go of the lock when the process ends, however it ends:
that tells the list of a dead process from that of a living one, whatever numbers and names processes have.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import secrets
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from threadbridge.common import forks
from threadbridge.common.private_directory import private_directory
from threadbridge.common.repeated_log import RepeatedLog
from threadbridge.database.driver import ConnectionSettings, Database
from threadbridge.database.stopper import Stopper

logger = logging.getLogger("threadbridge")

# Seconds between two looks for lists of dead processes. The first is at the start.
INTERVAL = 5.0
# Bytes that a connection takes up in a file: more than any server's name has, and less than a page, which is written
# whole or not at all.
SLOT = 2048
_SECRETS = ("passwd", "password")


class ConnectionList:
    """The connections of a pool, for others to find when this process is dead; and the lists of such others.

    Others are processes of the same user and working directory on this machine, since it was booted, whose pools
    connect in the same way: whoever finds a dead one's list can end what it names.

    :param settings: how the pool connects.
    :param stopper: ends what is found.
    :param database_by: gives the kind of database by its driver's name.
    """

    def __init__(
        self, settings: ConnectionSettings, stopper: Stopper, database_by: Callable[[str], Database | None]
    ) -> None:
        self._prefix = f"connections-{_digest(settings)}-"
        self._stopper = stopper
        self._database_by = database_by
        self._directory: str | None = None
        # Guarded by the lock.
        self._has_begun = False
        self._own: _OwnFile | None = None
        self._lock = threading.Lock()
        self._unusable = RepeatedLog(logger, 600)

    def begin(self, directory: str | None = None) -> None:
        """Look for what dead processes have left now, and from time to time. Any thread; returns at once.

        :param directory: where the lists are. Default: a directory of the user's own for temporary files.
        """
        with self._lock:
            if not self._has_begun:
                self._has_begun = True
                self._directory = directory
                self._stopper.repeat(self._look, INTERVAL)

    def enter(self, database: Database, identity: Any) -> Entry | None:
        """Put a connection on the list, which stays there as long as somebody has what this gives. Any thread.

        None, and a line in the log, when the file cannot be written.
        """
        self.begin()
        parts = database.parts_of(identity)
        if parts is None:
            return None
        try:
            with self._lock:
                if self._own is None:
                    self._own = _OwnFile(self._place(), self._prefix, database.driver)
                return self._own.add(parts)
        except (OSError, ValueError) as error:
            self._unusable.log(
                logging.WARNING,
                "cannot write the list of this process's connections: %s. If it is killed, no other process will end "
                "its queries",
                error,
            )
            return None

    def remove(self) -> None:
        """This process has nothing to be ended any more. Any thread."""
        with self._lock:
            own, self._own = self._own, None
        if own is not None:
            own.remove()

    def _place(self) -> Path:
        if self._directory is not None:
            return private_directory(self._directory)
        path = Path(tempfile.gettempdir(), f"threadbridge-{os.geteuid()}")
        if path.is_symlink():
            # Anybody can make one there, to a directory of this user's.
            raise ValueError(f"{path} is a symbolic link; expected a directory. Set run_directory to another one")
        return private_directory(str(path))

    def _look(self) -> None:
        """The stopper's thread."""
        try:
            place = self._place()
            with self._lock:
                if self._own is not None:
                    self._own.keep()
            for name in os.listdir(place):
                if name.startswith(self._prefix):
                    with _dead(place / name) as text:
                        if text is not None and self._take_over(text):
                            (place / name).unlink()
        except (OSError, ValueError) as error:
            self._unusable.log(logging.WARNING, "cannot look for connections left by killed processes: %s", error)

    def _take_over(self, text: str) -> bool:
        """Take over a dead process's connections; returns whether all are now on our list."""
        try:
            # Also a file that was made and not written to.
            header, *lists = [json.loads(line) for line in text.splitlines() if line.strip()] or [{}]
            database = self._database_by(header["driver"]) if lists else None
            if database is None:
                return True
            identities = [database.identity_of(parts) for parts in lists]
        except (ValueError, TypeError, KeyError) as error:
            logger.error("cannot read a dead process's list of connections, so they are not ended: %r", error)
            return True
        left = [Left(database, each, self.enter(database, each), header["pid"]) for each in identities]
        self._stopper.end(left)
        return all(each.entry is not None for each in left)


class Entry:
    """A connection's place on the list; goes to another when nobody has it any more."""

    def __init__(self, own: _OwnFile, slot: int) -> None:
        self._own = own
        self._slot = slot

    def __del__(self) -> None:
        # What is written there stays: it names a connection that has ended, which does no harm.
        self._own.free.append(self._slot)


@dataclass(frozen=True)
class Left:
    """A connection that was cut, as long as the database may still work for it. See `stopper.Remains`.

    :param entry: keeps it on this process's list.
    """

    database: Database
    identity: Any
    entry: Entry | None = field(default=None, compare=False)
    predecessor: int | None = field(default=None, compare=False)

    @property
    def number(self) -> int | None:
        """See `Remains`."""
        return self.database.number(self.identity)

    def end(self) -> bool:
        """See `Remains`."""
        return self.database.end(self.identity)


class _OwnFile:
    """This process's list: a line for itself, and a place for each connection that there is at a time."""

    def __init__(self, place: Path, prefix: str, driver: str) -> None:
        self._place = place
        self._prefix = prefix
        self._pid = os.getpid()
        # A deque's methods need no lock: places come back in any thread.
        self.free: deque[int] = deque()
        self._count = 1
        self._path, self.descriptor = self._make()
        forks.connects(self)
        self.write(0, {"pid": self._pid, "driver": driver})

    def _make(self) -> tuple[Path, int]:
        while True:
            path = self._place / f"{self._prefix}{secrets.token_hex(8)}"
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                # Somebody may have found it before it was locked, and removed it.
                if os.fstat(descriptor).st_nlink:
                    return path, descriptor
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)

    def add(self, parts: list[Any]) -> Entry:
        """Write down a connection. Under the lock. Raises ``OSError`` or ``ValueError`` when that cannot be done."""
        slot = self.free.popleft() if self.free else self._count
        try:
            self.write(slot, parts)
        except BaseException:
            if slot < self._count:
                self.free.append(slot)
            raise
        self._count = max(self._count, slot + 1)
        return Entry(self, slot)

    def write(self, slot: int, what: object) -> None:
        text = json.dumps(what).encode()
        if len(text) >= SLOT:
            raise ValueError(f"{len(text)} bytes are too many for a connection: {what}")
        os.pwrite(self.descriptor, text.ljust(SLOT - 1) + b"\n", slot * SLOT)

    def keep(self) -> None:
        """See to it that it is there, and is not taken for a temporary file that was forgotten. Under the lock."""
        if os.fstat(self.descriptor).st_nlink:
            os.utime(self.descriptor)
            return
        text = os.pread(self.descriptor, self._count * SLOT, 0)
        lost = self.descriptor
        self._path, self.descriptor = self._make()
        os.pwrite(self.descriptor, text, 0)
        os.close(lost)

    def remove(self) -> None:
        if self._pid == os.getpid():
            self._path.unlink(missing_ok=True)

    def __del__(self) -> None:
        # Nobody has any of the connections. Parts are missing while the interpreter ends, or if it could not be made.
        with contextlib.suppress(Exception):
            self.remove()
            os.close(self.descriptor)


@contextlib.contextmanager
def _dead(path: Path) -> Iterator[str | None]:
    """What a dead process's list says; None if the process lives, or somebody else has the list. Locked meanwhile."""
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
    """A name for all processes that this one is to look after, and that are to look after it."""
    connect = settings.connect
    kwargs = {name: value for name, value in settings.kwargs.items() if name not in _SECRETS}
    whose: list[object] = [
        _text_of("/proc/sys/kernel/random/boot_id"),
        _working_directory(),
        getattr(connect, "__module__", ""),
        getattr(connect, "__qualname__", ""),
        *(each for each in settings.args if _is_plain(each)),
        *sorted((name, repr(value)) for name, value in kwargs.items() if _is_plain(value)),
    ]
    return hashlib.sha256(repr(whose).encode()).hexdigest()[:16]


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, (str, bytes, int, float))


def _text_of(path: str) -> str:
    with contextlib.suppress(OSError):
        return Path(path).read_text().strip()
    return ""


def _working_directory() -> str:
    with contextlib.suppress(OSError):
        return os.getcwd()
    return ""
