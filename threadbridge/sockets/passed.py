"""Listening sockets that another program has opened: systemd's socket activation, and inherited descriptors."""

from __future__ import annotations

import errno
import os
import socket

# The number of the first socket that systemd passes (sd_listen_fds(3)).
FIRST = 3
_VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID")


def sockets_from_systemd() -> list[socket.socket]:
    """Return the sockets that systemd has passed to this process, none if it has passed none; on the first call only.

    They stay systemd's: it goes on listening when this process ends, so that connections wait for the next one. Removes
    the environment variables, so that no child takes the sockets for its own. Raises ``OSError`` if one is no listening
    stream socket, with its name in systemd as its file name.
    """
    pid, count, names, _ = (os.environ.pop(name, "") for name in _VARIABLES)
    if pid != str(os.getpid()) or not count.isdecimal():
        # Meant for a process that has started this one.
        return []
    labels = [*names.split(":"), *[""] * int(count)] if names else [""] * int(count)
    sockets: list[socket.socket] = []
    try:
        for number in range(int(count)):
            sockets.append(inherited_socket(FIRST + number))
    except OSError as error:
        label = labels[len(sockets)] or f"number {len(sockets) + 1}"
        for listener in sockets:
            listener.close()
        raise OSError(error.errno, error.strerror, f"the socket {label} of systemd") from None
    return sockets


def inherited_socket(descriptor: int) -> socket.socket:
    """Return the listening socket with this file descriptor; raises ``OSError`` if it is no listening stream socket.

    Programs that this process starts do not inherit it.
    """
    listener = socket.socket(fileno=descriptor)
    listens = listener.type == socket.SOCK_STREAM and listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    if not listens:
        # It is not ours to close.
        listener.detach()
        raise OSError(errno.EINVAL, "expected a listening stream socket (in systemd: ListenStream=, and Accept=no)")
    os.set_inheritable(descriptor, False)
    listener.setblocking(False)
    return listener
