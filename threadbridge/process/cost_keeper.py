"""Keeps what is learned of costs in a file, for the processes of this host that serve the same application."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import logging
import os
import stat
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from threadbridge.common.private_directory import directory_id, run_directory
from threadbridge.common.repeated_log import RepeatedLog
from threadbridge.common.threads import NOT_STARTED
from threadbridge.crossing.cost_file import MAX_SIZE, decode, encode, merge
from threadbridge.crossing.costs import Costs
from threadbridge.crossing.routes import Routes

logger = logging.getLogger("threadbridge")

# Seconds between two looks at the file and at what is new here.
INTERVAL = 30.0
# Seconds that saving may delay the end of the process.
LAST_TIME = 2.0
# Bytes of a file that is read: room for later versions.
LARGEST = 4 * MAX_SIZE
# After so many times in a row, another process that is writing is worth a line in the log.
FEW = 3

UNSAVED = "cannot save what requests cost, which a restart would forget: %s"
UNREADABLE = "cannot read %s: %s. What requests cost is learned from scratch"


class CostKeeper:
    """Reads and writes the file of costs. Faults are logged, and it is tried again; no request notices them.

    The file is in the run directory. Its name depends on the application and, in the default directory, which all
    programs share, on the working directory.

    :param directory: the run directory; None for the default.
    :param application: names the application; "" if the program does.
    """

    def __init__(self, costs: Costs, routes: Routes, directory: str | None, application: str) -> None:
        self._costs = costs
        self._routes = routes
        self._run_directory = directory
        # The same on all hosts.
        self.application = application or os.path.basename(getattr(sys.modules["__main__"], "__file__", None) or "")
        named = [self.application]
        if directory is None:
            with contextlib.suppress(FileNotFoundError):
                named.append(os.getcwd())
        self._name = f"costs-{hashlib.sha256(repr(named).encode()).hexdigest()[:16]}"
        # One thread at a time reads and writes; it guards what follows.
        self._lock = threading.Lock()
        # How many costs had been learned when they were saved; -1 if others have been added since.
        self._saved = 0
        # How many times in a row another process has been writing.
        self._skipped = 0
        # Tells whether the file is still as it was when last read or written.
        self._seen: tuple[int, ...] | None = None
        self._unreadable, self._unsaved = RepeatedLog(logger, 600), RepeatedLog(logger, 600)

    def load(self) -> None:
        """Learn from the file, unless there is none or it cannot be used."""
        with self._lock:
            try:
                self._merge(run_directory(self._run_directory))
            except ValueError as error:
                self._unsaved.log(logging.WARNING, UNSAVED, error)

    @property
    def knows_any(self) -> bool:
        """Whether anything is known."""
        return len(self._routes) > 0

    def directory_id(self) -> str:
        """What tells the directory from those of other hosts; "" if it cannot be used."""
        try:
            return directory_id(run_directory(self._run_directory))
        except (OSError, ValueError):
            return ""

    def text_for(self, application: str, reader: str) -> bytes | None:
        """The file, for a process of another host; None if there is none, or not for it. Any thread but the loop's.

        :param reader: the `directory_id` there.
        """
        if application != self.application or reader == self.directory_id():
            return None
        try:
            with _opened(run_directory(self._run_directory) / self._name) as file:
                return _read(file)
        except (OSError, ValueError):
            # It is logged where this process reads it for itself.
            return None

    def learn_from(self, text: bytes) -> None:
        """Learn from the file of another host, all or nothing, and save it. Any thread but the loop's.

        Raises ``ValueError`` for a text that cannot be used.
        """
        if len(text) > LARGEST:
            raise ValueError(f"it has {len(text)} bytes; expected at most {LARGEST}")
        knowledge = decode(text)
        knowledge = knowledge._replace(lines=list(knowledge.lines))
        with self._lock:
            merge(knowledge, self._costs, self._routes)
            self._saved = -1
        self.save()

    async def keep(self, stop: asyncio.Event) -> None:
        """Save what is new every `INTERVAL` seconds, and once more when the event is set."""
        loop = asyncio.get_running_loop()
        while not stop.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), INTERVAL)
            try:
                # A new executor each time, because its thread ends with it.
                await loop.run_in_executor(ThreadPoolExecutor(1, "threadbridge-costs"), self.save)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is logged and tried again
                self._unsaved.log(logging.WARNING, UNSAVED, error)

    def save_last(self) -> None:
        """Save what is new before the process ends, if that does not take too long."""
        thread = threading.Thread(target=self.save, args=(True,), name="threadbridge-costs", daemon=True)
        try:
            thread.start()
        except NOT_STARTED as error:
            self._unsaved.log(logging.WARNING, UNSAVED, error)
        else:
            thread.join(LAST_TIME)

    def save(self, is_last: bool = False) -> None:
        """Learn what other processes have written, and write what is new here. Any thread but the loop's.

        If another process is writing now, nothing is done, unless this is the last time.
        """
        with self._lock:
            try:
                directory = run_directory(self._run_directory)
                with _locked(directory, is_last):
                    self._skipped = 0
                    self._merge(directory)
                    learned = self._costs.learned
                    if learned != self._saved:
                        self._write(directory)
                        self._saved = learned
            except BlockingIOError:
                self._skipped += 1
                if self._skipped >= FEW:
                    self._unsaved.log(logging.WARNING, UNSAVED, f"another process locks {directory}")
            except (OSError, ValueError) as error:
                self._unsaved.log(logging.WARNING, UNSAVED, error)

    def _merge(self, directory: Path) -> None:
        """Learn from the file if it has changed."""
        try:
            with _opened(directory / self._name) as file:
                seen = _state(file)
                if seen != self._seen:
                    self._seen = seen
                    knowledge = decode(_read(file))
                    if self._costs.learned == 0:
                        # All or nothing.
                        knowledge = knowledge._replace(lines=list(knowledge.lines))
                    merge(knowledge, self._costs, self._routes)
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as error:
            self._unreadable.log(logging.WARNING, UNREADABLE, directory / self._name, error)

    def _write(self, directory: Path) -> None:
        text = encode(self._costs, self._routes)
        path = directory / f"{self._name}.new"
        path.unlink(missing_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with open(descriptor, "wb") as file:
                file.write(text)
                file.flush()
                seen = _state(descriptor)
            path.rename(directory / self._name)
        except OSError:
            path.unlink(missing_ok=True)
            raise
        self._seen = seen


@contextlib.contextmanager
def _locked(directory: Path, waits: bool) -> Iterator[None]:
    """Keep other processes from writing; wait for one that writes, or raise ``BlockingIOError``."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
        yield
    finally:
        # The application may have forked meanwhile, and the copy would keep it.
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    # A pipe would wait for a writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _state(descriptor: int) -> tuple[int, ...]:
    found = os.fstat(descriptor)
    return found.st_ino, found.st_mtime_ns, found.st_size


def _read(descriptor: int) -> bytes:
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        raise ValueError("it is not a file")
    if found.st_uid != os.geteuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ValueError("other users may write to it")
    if found.st_size > LARGEST:
        raise ValueError(f"it has {found.st_size} bytes; expected at most {LARGEST}")
    with open(descriptor, "rb", closefd=False) as file:
        return file.read(LARGEST)
