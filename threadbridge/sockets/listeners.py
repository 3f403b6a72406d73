"""The sockets a process listens on: TCP, Unix, TLS. Loop side, or before the loop runs."""

from __future__ import annotations

import os
import socket
import ssl
import stat
import struct
import sys
from array import array
from collections.abc import Callable

from tornado.netutil import bind_sockets

from threadbridge.settings.table import Settings

# How many clients may have connected before they are accepted: those that come at once, as after a restart. Linux
# allows 4096 (net.core.somaxconn).
BACKLOG = 1024

_SO_ATTACH_FILTER = 26
# A classic BPF program: the TCP flags are byte 13; a segment with SYN and without ACK is dropped, all else passes.
_DROP_SYN = (
    (0x30, 0, 0, 13),  # load the byte
    (0x54, 0, 0, 0x12),  # and SYN | ACK
    (0x15, 0, 1, 0x02),  # if equal SYN: next, else skip one
    (0x06, 0, 0, 0),  # drop
    (0x06, 0, 0, 0xFFFFFFFF),  # pass
)


def bind(settings: Settings) -> tuple[list[socket.socket], Callable[[], None]]:
    """Listen where the settings say; gives the sockets and what removes the file of a Unix socket again.

    Raises ``OSError``.
    """
    path = settings["unix_socket"]
    if path is None:
        return bind_sockets(
            settings["port"], settings["address"], backlog=BACKLOG, reuse_port=settings["reuse_port"]
        ), lambda: None
    listener, remove = bind_unix_socket(path, settings["unix_socket_mode"])
    return [listener], remove


def bind_for_each(count: int, settings: Settings) -> tuple[list[list[socket.socket]], Callable[[], None]]:
    """Like `bind`, but with sockets for each of several processes: the kernel spreads TCP connections over them.

    A Unix socket cannot be spread: all have the same one.
    """
    first, remove = bind(settings)
    if settings["unix_socket"] is not None:
        return [first] * count, remove
    # Only now, so that a port which strangers share already counts as in use.
    for listener in first:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    port = first[0].getsockname()[1]
    others = [bind_sockets(port, settings["address"], backlog=BACKLOG, reuse_port=True) for _ in range(count - 1)]
    return [first, *others], remove


def bind_admin(settings: Settings) -> list[socket.socket]:
    """Listen where the settings say for operators; no socket without ``admin_port``.

    Raises ``OSError``, with the address as its file name.
    """
    address, port = settings["admin_address"], settings["admin_port"]
    if port is None:
        return []
    try:
        return bind_sockets(port, address)
    except OSError as error:
        raise OSError(error.errno, error.strerror, f"{address}:{port}") from None


def bind_unix_socket(path: str, mode: int) -> tuple[socket.socket, Callable[[], None]]:
    """Listen on a Unix socket; gives the socket and what removes its file again.

    A file that a process has left behind which is gone is replaced. One on which somebody listens, or which is no
    socket, stays, and ``OSError`` is raised. Removing spares a file that is no longer this socket's.
    """
    if _is_left_behind(path):
        os.unlink(path)
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.setblocking(False)
        listener.bind(path)
        # Nobody can connect before `listen`.
        os.chmod(path, mode)
        listener.listen(BACKLOG)
        made = os.stat(path)
    except OSError:
        listener.close()
        raise

    owner = os.getpid()

    def remove() -> None:
        # A forked process has a copy of this, but not of the socket.
        if os.getpid() != owner:
            return
        try:
            if os.path.samestat(os.lstat(path), made):
                os.unlink(path)
        except FileNotFoundError:
            # Removed by somebody else, which is as well.
            pass

    return listener, remove


def _is_left_behind(path: str) -> bool:
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return False
    except FileNotFoundError:
        return False
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return True
        except BlockingIOError:
            # Somebody listens, who is only slow to accept.
            return False
    return False


def leave_new_connections_to_others(listener: socket.socket) -> None:
    """Have the kernel overlook attempts to connect to this listener of a shared port, which is about to be closed.

    A client that is overlooked tries again by itself, a second later, and reaches another process. Without this, a
    connection that is made between the last ``accept`` and the ``close`` would be reset. Linux only.
    """
    if sys.platform == "linux":
        program = array("B", b"".join(struct.pack("=HBBI", *step) for step in _DROP_SYN))
        address, _ = program.buffer_info()
        description = struct.pack("@HP", len(_DROP_SYN), address)
        listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, description)


def tls_context(certfile: str, keyfile: str | None) -> ssl.SSLContext:
    """A context for serving HTTPS: TLS 1.2 or later with Python's choice of ciphers.

    Raises ``ValueError`` when the certificate or the key cannot be used.
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        # A password, however wrong, for a key that needs one: without it OpenSSL would ask at the terminal.
        context.load_cert_chain(certfile, keyfile, password="")
    except OSError as error:
        files = f"certfile {certfile}" + (f" and keyfile {keyfile}" if keyfile else "")
        raise ValueError(
            f"{files}: {error.strerror or error}; expected a certificate and its key, unencrypted, in PEM files"
        ) from None
    return context


def describe(listener: socket.socket, scheme: str) -> str:
    """Where a socket can be reached: a URL, or ``unix:`` and a path."""
    name = listener.getsockname()
    if isinstance(name, str):
        return f"unix:{name}"
    host, port = name[:2]
    return f"{scheme}://[{host}]:{port}/" if ":" in host else f"{scheme}://{host}:{port}/"
