"""How others find the process: its pid file, and its title in lists of processes."""

from __future__ import annotations

import fcntl
import logging
import os
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from threadbridge.settings.values import SettingError

logger = logging.getLogger("threadbridge")

# The pid file that this process has written.
_written: list[Path] = []


def write_pid_file(path: str) -> None:
    """Write this process's number to the file, for `remove_pid_file` to remove.

    A file of a process that has ended is replaced. Raises `SettingError` if the process in the file is running or the
    file cannot be written.
    """
    file = Path(path).absolute()
    try:
        directory = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            # Two servers that start at the same time find the same abandoned file.
            fcntl.flock(directory, fcntl.LOCK_EX)
            other = _running(file)
            if other is not None:
                raise SettingError(f"pid_file={path}: process {other} is running; stop it, or give another file")
            handle, temporary = tempfile.mkstemp(prefix=f".{file.name}-", dir=file.parent)
            with open(handle, "w") as written:
                written.write(f"{os.getpid()}\n")
                os.fchmod(handle, 0o644)
            # Readers find the old file or the new one, but never half of it.
            os.replace(temporary, file)
        finally:
            os.close(directory)
    except OSError as error:
        raise SettingError(f"pid_file={path}: {error.strerror}") from None
    _written[:] = [file]


def remove_pid_file() -> None:
    """Remove the pid file that this process has written, unless another process has replaced it."""
    while _written:
        file = _written.pop()
        with suppress(OSError, ValueError):
            if int(file.read_text()) == os.getpid():
                try:
                    file.unlink()
                except PermissionError:
                    # The directory is root's, and this process has become another user.
                    os.truncate(file, 0)


def pid_files() -> list[Path]:
    """The pid file that this process has written, if any."""
    return list(_written)


def _running(file: Path) -> int | None:
    """The process that the file names, if it is running and has written it."""
    with suppress(FileNotFoundError, ValueError):
        number = int(file.read_text())
        if number != os.getpid() and number > 0 and _started(number) <= file.stat().st_mtime:
            return number
    return None


def _started(number: int) -> float:
    """When a process was started, in seconds since the epoch, rounded down; infinite if there is none.

    After a restart of the machine, another process may have the number: it started after the file was written.
    """
    with suppress(FileNotFoundError, ProcessLookupError):
        state, *fields = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()
        boot = next(line for line in Path("/proc/stat").read_text().splitlines() if line.startswith("btime "))
        if state not in "ZX":
            return int(boot.split()[1]) + int(fields[18]) // os.sysconf("SC_CLK_TCK")
    return float("inf")


def set_title(role: str) -> None:
    """Say in lists of processes what this one is for, before its command line; needs the package `setproctitle`."""
    with suppress(ImportError):
        import setproctitle

        setproctitle.setproctitle(f"threadbridge: {role}: {' '.join(sys.argv)}")
