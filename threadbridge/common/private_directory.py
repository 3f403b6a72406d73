"""A directory that only this process's user, or root, can write to; and what tells it from those of other machines."""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path


def private_directory(path: str) -> Path:
    """Return the directory, created if it is missing. Raises ``ValueError`` if it is unusable or unsafe."""
    directory = Path(path).absolute()
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = directory.stat()
    except OSError as error:
        raise ValueError(f"run_directory {path}: {error.strerror}") from None
    # Anyone who can create files there could pose as a frontend.
    if found.st_uid not in (os.geteuid(), 0) or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ValueError(
            f"run_directory {path}: other users may write there; give one that belongs to this user alone (chmod 700)"
        )
    return directory


def run_directory(path: str | None) -> Path:
    """Return the run directory; by default one of this user's among the temporary files. Raises ``ValueError``."""
    if path is not None:
        return private_directory(path)
    default = Path(tempfile.gettempdir(), f"threadbridge-{os.geteuid()}")
    # Any user could have made a link to a directory of this user's.
    if default.is_symlink():
        raise ValueError(f"{default} is a symbolic link; expected a directory. Set run_directory to another one")
    return private_directory(str(default))


def directory_id(directory: Path) -> str:
    """What tells the directory from those of other machines and containers. Raises ``OSError``."""
    found = directory.stat()
    return hashlib.sha256(f"{boot_id()} {found.st_dev} {found.st_ino}".encode()).hexdigest()[:16]


def boot_id() -> str:
    """The running kernel's own id, which tells this machine from others of the same name; "" outside Linux."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""
