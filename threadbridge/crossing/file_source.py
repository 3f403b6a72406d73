"""A response's body that is a file, on its way to the client without a worker."""

from __future__ import annotations

import io
import os
import stat
import threading
from types import BuiltinMethodType
from typing import IO, NamedTuple

from threadbridge.crossing.response_body import PIECE, Taken, piece_size
from threadbridge.crossing.spool import Spool

# Linux's: fail rather than wait for the disk. Without it, whether a read would wait is unknown.
_WITHOUT_WAITING: int | None = getattr(os, "RWF_NOWAIT", None)


class FilePiece(NamedTuple):
    """A part of a file that the kernel has in memory, to be sent by ``os.sendfile``."""

    descriptor: int
    offset: int
    size: int


class FileSource:
    """A part of a regular file that is sent without a worker: a `Source`. Made on the worker side.

    What the kernel has in memory goes from there to the socket, if the connection can do that, which does not block.
    The disk is only read in a disk thread. Where the file system does not tell which of them it is, or the connection
    has TLS, all is read there.

    :param descriptor: is closed with this.
    :param may_send: whether the connection takes a `FilePiece`.
    """

    def __init__(self, spool: Spool, descriptor: int, offset: int, size: int, *, may_send: bool) -> None:
        self.size = size
        self._spool = spool
        self._offset = offset
        self._remaining = size
        self._may_send = may_send and _WITHOUT_WAITING is not None
        self._descriptor = descriptor
        # Held while a disk thread reads: the descriptor must not be closed meanwhile, and be another file's.
        self._lock = threading.Lock()

    def take(self) -> Taken | FilePiece:
        """See `Source`; a `FilePiece` is followed by `sent`."""
        if not self._remaining:
            return ()
        if self._may_send:
            size = min(PIECE, self._remaining)
            if self._is_in_memory(self._offset) and self._is_in_memory(self._offset + size - 1):
                return FilePiece(self._descriptor, self._offset, size)
        return self._read

    def _is_in_memory(self, offset: int) -> bool:
        """Whether the kernel has a byte of the file in memory; what lies between two such bytes is, too, as a rule."""
        assert _WITHOUT_WAITING is not None
        try:
            return os.preadv(self._descriptor, [bytearray(1)], offset, _WITHOUT_WAITING) == 1
        except BlockingIOError:
            return False
        except OSError:
            # File systems such as overlayfs and tmpfs do not tell.
            self._may_send = False
            return False

    def sent(self, size: int) -> None:
        """Note that so many bytes of a `FilePiece` have left. Loop side."""
        self._offset += size
        self._remaining -= size

    def _read(self) -> bytes:
        with self._lock:
            if self._descriptor < 0:
                return b""
            data = os.pread(self._descriptor, min(piece_size(self._spool), self._remaining), self._offset)
        if not data:
            raise EOFError(f"the file ended {self._remaining} bytes early: it became shorter while it was being sent")
        self._offset += len(data)
        self._remaining -= len(data)
        return data

    def close(self) -> None:
        self._spool.clear_up(self._close)

    def _close(self) -> None:
        with self._lock:
            os.close(self._descriptor)
            self._descriptor = -1


def plain_file(file: IO[bytes]) -> tuple[int, int, int]:
    """Return a regular file's descriptor, its position and the number of bytes from there on. Worker side.

    Raises ``OSError`` or ``AttributeError`` for any other object.
    """
    if not _reads_plainly(file):
        raise io.UnsupportedOperation("its read() may give other bytes than the file has")
    descriptor = file.fileno()
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise io.UnsupportedOperation("not a regular file")
    offset = file.tell()
    return descriptor, offset, max(0, status.st_size - offset)


def _reads_plainly(file: IO[bytes]) -> bool:
    """Return whether `read` gives the file's own bytes: a `gzip.GzipFile` has a descriptor, too, of compressed ones."""
    read = file.read
    reader = read.__self__ if isinstance(read, BuiltinMethodType) else None
    raw = reader.raw if isinstance(reader, (io.BufferedReader, io.BufferedRandom)) else reader
    return isinstance(raw, io.FileIO)
