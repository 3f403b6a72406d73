"""A directory that only this process's user can write to."""

from __future__ import annotations

import os
import stat
from pathlib import Path


def private_directory(path: str) -> Path:
    """The directory, which is made if it is missing; raises ``ValueError`` if it cannot be used, or not safely."""
    directory = Path(path).absolute()
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = directory.stat()
    except OSError as error:
        raise ValueError(f"run_directory {path}: {error.strerror}") from None
    if not stat.S_ISDIR(found.st_mode):
        raise ValueError(f"run_directory {path}: expected a directory")
    # Who can make files there could pass for a frontend.
    if found.st_uid not in (os.geteuid(), 0) or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ValueError(
            f"run_directory {path}: other users may write there; give one that belongs to this user alone (chmod 700)"
        )
    return directory
