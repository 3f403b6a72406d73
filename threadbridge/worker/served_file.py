"""Files below a directory, opened to be sent: what leads out of the directory is refused. Worker side."""

from __future__ import annotations

import errno
import os
import stat

# Opening never waits, as it would for a pipe, and processes that are started do not inherit the descriptor.
_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW


class ServedFile:
    """A regular file that is open to be sent: the body of a response."""

    def __init__(self, descriptor: int, status: os.stat_result) -> None:
        self.descriptor = descriptor
        self.size = status.st_size
        self.modified = status.st_mtime
        # As nginx makes it, with a finer time.
        self.etag = f'"{status.st_mtime_ns:x}-{status.st_size:x}"'

    def take(self) -> int:
        """Return the descriptor, which the caller closes."""
        descriptor, self.descriptor = self.descriptor, -1
        return descriptor

    def close(self) -> None:
        """Close the file, unless somebody has taken it."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


class OutsideError(Exception):
    """The path leads out of the directory: by ``..`` or a symbolic link."""


def checked_directory(setting: str, path: str) -> str:
    """The absolute path of a directory that a setting names; raises ``ValueError`` if there is none."""
    # Absolute, since the application may change the working directory.
    directory = os.path.abspath(path)
    if not os.path.isdir(directory):
        raise ValueError(f"{setting}: there is no directory {directory}; create it, or correct the path")
    return directory


def open_below(directory: str, path: str) -> ServedFile:
    """Open a file by its path below a directory, or its absolute path.

    Symbolic links are followed, as long as they stay below the directory. Raises `OutsideError`, and ``OSError``: an
    ``IsADirectoryError`` for a directory, a ``PermissionError`` for what is not a regular file.
    """
    # Each time: the directory itself may be a link, which a deployment changes.
    root = os.path.realpath(directory)
    try:
        real = os.path.realpath(os.path.join(root, path))
    except ValueError:
        # A NUL.
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path) from None
    relative = os.path.relpath(real, root)
    if relative.split(os.sep, 1)[0] == os.pardir:
        raise OutsideError(f"{path!r} leads out of {directory}, by .. or a symbolic link")
    descriptor = _open(root, relative)
    try:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        if not stat.S_ISREG(status.st_mode):
            raise PermissionError(errno.EACCES, "not a regular file", path)
    except OSError:
        os.close(descriptor)
        raise
    return ServedFile(descriptor, status)


def _open(root: str, relative: str) -> int:
    """Open step by step, without following links: one that replaces a part of the path meanwhile leads nowhere."""
    directory = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    *directories, name = relative.split(os.sep)
    try:
        for each in directories:
            inner = os.open(each, _FLAGS | os.O_DIRECTORY, dir_fd=directory)
            os.close(directory)
            directory = inner
        return os.open(name, _FLAGS, dir_fd=directory)
    finally:
        os.close(directory)
