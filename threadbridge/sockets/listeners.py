"""Opens listening sockets: TCP, Unix, TLS."""

from __future__ import annotations

import errno
import os
import socket
import ssl
import stat
import struct
import sys
from array import array
from collections.abc import Callable
from contextlib import suppress

from tornado import netutil

from threadbridge.settings.table import Settings

# How many connections may wait to be accepted, as after a restart. Linux allows 4096 (net.core.somaxconn).
BACKLOG = 1024

_SO_ATTACH_FILTER = 26
# A classic BPF program that drops segments with SYN and without ACK; the TCP flags are byte 13.
_DROP_SYN = (
    (0x30, 0, 0, 13),  # load the byte
    (0x54, 0, 0, 0x12),  # and SYN | ACK
    (0x15, 0, 1, 0x02),  # if equal SYN: next, else skip one
    (0x06, 0, 0, 0),  # drop
    (0x06, 0, 0, 0xFFFFFFFF),  # pass
)


def bind(settings: Settings, processes: int = 1) -> tuple[list[list[socket.socket]], Callable[[], None]]:
    """Listen at the configured address; returns each process's sockets, and a function that removes a socket file.

    The kernel spreads TCP connections over the processes; they share a Unix socket. Raises ``OSError``.
    """
    path, address = settings["unix_socket"], settings["address"]
    if path is not None:
        listener, remove = bind_unix_socket(path, settings["unix_socket_mode"])
        return [[listener]] * processes, remove
    first = netutil.bind_sockets(settings["port"], address, backlog=BACKLOG, reuse_port=settings["reuse_port"])
    if processes > 1:
        # Only now, so that listening fails on a port on which strangers listen with SO_REUSEPORT.
        for listener in first:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    port = first[0].getsockname()[1]
    others = [netutil.bind_sockets(port, address, backlog=BACKLOG, reuse_port=True) for _ in range(processes - 1)]
    return [first, *others], lambda: None


def bind_admin(settings: Settings) -> list[socket.socket]:
    """Listen for operators, if ``admin_port`` is set. Raises ``OSError``, with the address as its file name."""
    address, port = settings["admin_address"], settings["admin_port"]
    if port is None:
        return []
    try:
        return netutil.bind_sockets(port, address)
    except OSError as error:
        raise OSError(error.errno, error.strerror, f"{address}:{port}") from None


def bind_unix_socket(path: str, mode: int) -> tuple[socket.socket, Callable[[], None]]:
    """Listen on a Unix socket; returns the socket, and a function that removes its file unless another replaced it.

    Replaces the socket file of a process that has ended. Raises ``OSError`` if another process listens there, or the
    file is not a socket.
    """
    # Not Tornado's function, which would also remove the socket of a process that has just begun to listen.
    if _is_abandoned(path):
        os.unlink(path)
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.setblocking(False)
        listener.bind(path)
        # Nobody can connect before `listen`.
        os.chmod(path, mode)
        listener.listen(BACKLOG)
        return listener, removal_of(path)
    except OSError:
        listener.close()
        raise


def removal_of(path: str | None) -> Callable[[], None]:
    """A function that removes a socket's file, if another has not replaced it; with None, it does nothing."""
    if path is None:
        return lambda: None
    made, owner = os.stat(path), os.getpid()

    def remove() -> None:
        # A forked process has a copy of this function, but not of the socket.
        with suppress(FileNotFoundError):
            if os.getpid() == owner and os.path.samestat(os.lstat(path), made):
                os.unlink(path)

    return remove


def _is_abandoned(path: str) -> bool:
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return False
    except FileNotFoundError:
        return False
    with socket.socket(socket.AF_UNIX) as probe:
        # EAGAIN: a process listens, but is slow to accept.
        probe.setblocking(False)
        return probe.connect_ex(path) == errno.ECONNREFUSED


def leave_new_connections_to_others(listener: socket.socket) -> None:
    """Make the kernel ignore new connections to this listener of a shared port, which is about to be closed.

    The client's system tries again a second later, and reaches another process; otherwise, a connection made between
    the last ``accept`` and the ``close`` would be reset. Does nothing outside Linux.
    """
    if sys.platform == "linux":
        program = array("B", b"".join(struct.pack("=HBBI", *step) for step in _DROP_SYN))
        description = struct.pack("@HP", len(_DROP_SYN), program.buffer_info()[0])
        listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, description)


def tls_context(certfile: str, keyfile: str | None) -> ssl.SSLContext:
    """Return a context for TLS 1.2 or later; raises ``ValueError`` if the certificate or the key cannot be used."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        # Without a password, OpenSSL would ask for that of an encrypted key at the terminal.
        context.load_cert_chain(certfile, keyfile, password="")
    except OSError as error:
        files = f"certfile {certfile}" + (f" and keyfile {keyfile}" if keyfile else "")
        raise ValueError(
            f"{files}: {error.strerror or error}; expected a certificate and its key, unencrypted, in PEM files"
        ) from None
    return context


def describe(listener: socket.socket, scheme: str) -> str:
    """Return where a socket can be reached: a URL, or ``unix:`` and a path."""
    name = listener.getsockname()
    if isinstance(name, str):
        return f"unix:{name}"
    host, port = name[:2]
    return f"{scheme}://[{host}]:{port}/" if ":" in host else f"{scheme}://{host}:{port}/"
