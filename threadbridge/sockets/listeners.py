"""Opens listening sockets: TCP and Unix sockets."""

from __future__ import annotations

import errno
import logging
import os
import socket
import stat
import struct
import sys
from array import array
from collections.abc import Callable, Sequence
from contextlib import suppress

from tornado import netutil

from threadbridge.settings.table import Settings
from threadbridge.settings.values import Address, address_of
from threadbridge.sockets.passed import inherited_socket, sockets_from_systemd

# How many connections may wait to be accepted, as after a restart. Linux allows 4096 (net.core.somaxconn).
BACKLOG = 1024

logger = logging.getLogger("threadbridge")

_SO_ATTACH_FILTER = 26
# A classic BPF program that drops segments with SYN and without ACK; the TCP flags are byte 13.
_DROP_SYN = (
    (0x30, 0, 0, 13),  # load the byte
    (0x54, 0, 0, 0x12),  # and SYN | ACK
    (0x15, 0, 1, 0x02),  # if equal SYN: next, else skip one
    (0x06, 0, 0, 0),  # drop
    (0x06, 0, 0, 0xFFFFFFFF),  # pass
)


class Listeners:
    """The listening sockets of a server's processes. Belongs to the main thread of the process that opened them."""

    def __init__(self, processes: int = 1) -> None:
        # For each process, in the order of their numbers.
        self.of_process: list[list[socket.socket]] = [[] for _ in range(processes)]
        # Those that may share their port with other servers.
        self._shared: list[socket.socket] = []
        # Those that all processes have.
        self._common: list[socket.socket] = []
        # The files of Unix sockets.
        self.paths: list[str] = []
        self._removals: list[Callable[[], None]] = []

    def add(self, address: Address, *, mode: int, reuse_port: bool) -> None:
        """Listen at this address, too; raises ``OSError``, with the address as its file name.

        The kernel spreads TCP connections over the processes; they share a Unix socket or an inherited one.
        """
        try:
            if address.path is not None:
                listener, remove = bind_unix_socket(address.path, mode)
                self._removals.append(remove)
                self.paths.append(address.path)
                self.add_shared(listener)
            elif address.descriptor is not None:
                self.add_shared(inherited_socket(address.descriptor))
            else:
                self._add_port(address, reuse_port)
        except OSError as error:
            raise OSError(error.errno, error.strerror or str(error), _shown(address)) from None

    def _add_port(self, address: Address, reuse_port: bool) -> None:
        first = netutil.bind_sockets(address.port, address.host, backlog=BACKLOG, reuse_port=reuse_port)
        self.of_process[0] += first
        if len(self.of_process) > 1:
            # Only now, so that listening fails on a port on which strangers listen with SO_REUSEPORT.
            for listener in first:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        port = first[0].getsockname()[1]
        for listeners in self.of_process[1:]:
            listeners += netutil.bind_sockets(port, address.host, backlog=BACKLOG, reuse_port=True)
        if reuse_port:
            self._shared += [listener for listeners in self.of_process for listener in listeners]

    def add_shared(self, listener: socket.socket) -> None:
        """Let all processes accept connections from this socket."""
        self._common.append(listener)
        for listeners in self.of_process:
            listeners.append(listener)

    def add_process(self) -> None:
        """Bind sockets for another process, which listens on them itself once it is ready for connections.

        Raises ``OSError``, with the address as its file name.
        """
        added = list(self._common)
        for first in self.of_process[0]:
            if first in self._common:
                continue
            # A single process has been alone on its port.
            first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            listener = socket.socket(first.family, socket.SOCK_STREAM)
            added.append(listener)
            listener.setblocking(False)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if first.family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                listener.bind(first.getsockname())
            except OSError as error:
                for each in set(added) - set(self._common):
                    each.close()
                raise OSError(error.errno, error.strerror, _shown(Address(*first.getsockname()[:2]))) from None
            if first in self._shared:
                self._shared.append(listener)
        self.of_process.append(added)

    def remove_process(self) -> bool:
        """Close the sockets of the last process here, and leave new connections to the others.

        The process still has them. Returns whether it has any of its own.
        """
        own = [listener for listener in self.of_process.pop() if listener not in self._common]
        self._shared = [listener for listener in self._shared if listener not in own]
        for listener in own:
            leave_new_connections_to_others(listener)
            listener.close()
        return bool(own)

    def keep(self, listeners: Sequence[socket.socket], settings: Settings) -> None:
        """Go on with the sockets of these settings, which this process had before it started again."""
        for listener in listeners:
            self.add_shared(listener)
        paths = [address_of(text).path for text in settings["bind"]] or [settings["unix_socket"]]
        self._removals += [removal_of(path) for path in paths if path is not None]
        if settings["reuse_port"]:
            self._shared += [each for each in listeners if each.family != socket.AF_UNIX]

    def remove_files(self) -> None:
        """Remove the files of Unix sockets, unless they have been replaced; does nothing in a forked process."""
        for remove in self._removals:
            remove()

    def leave_new_connections_to_others(self) -> None:
        """Leave new connections to the other servers on ports with ``reuse_port``: these are about to be closed."""
        for listener in self._shared:
            leave_new_connections_to_others(listener)

    def close(self) -> None:
        """Close all sockets in this process."""
        for listener in {listener for listeners in self.of_process for listener in listeners}:
            listener.close()


def bind(settings: Settings, processes: int = 1) -> Listeners:
    """Listen at the configured addresses, and on the sockets that systemd has passed to this process.

    Raises ``OSError``, with the address as its file name.
    """
    listeners = Listeners(processes)
    addresses = [address_of(text) for text in settings["bind"]]
    try:
        passed = sockets_from_systemd()
        for listener in passed:
            listeners.add_shared(listener)
        if not addresses and not passed:
            addresses = [Address(settings["address"], settings["port"], settings["unix_socket"])]
        for address in addresses:
            listeners.add(address, mode=settings["unix_socket_mode"], reuse_port=settings["reuse_port"])
    except OSError:
        listeners.remove_files()
        listeners.close()
        raise
    return listeners


def _shown(address: Address) -> str:
    if address.path is not None:
        return address.path
    if address.descriptor is not None:
        return f"fd:{address.descriptor}"
    return f"[{address.host}]:{address.port}" if ":" in address.host else f"{address.host}:{address.port}"


def bind_admin(settings: Settings) -> list[socket.socket]:
    """Listen for operators, if ``admin_port`` is set. Raises ``OSError``, with the address as its file name."""
    return _bind_if_set(settings["admin_address"], settings["admin_port"])


def bind_agent(settings: Settings) -> list[socket.socket]:
    """Listen for HAProxy's agent-check, if ``agent_port`` is set. Raises as `bind_admin`."""
    return _bind_if_set(settings["agent_address"], settings["agent_port"])


def _bind_if_set(address: str, port: int | None) -> list[socket.socket]:
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
        # On Linux, the file gets the socket's permissions. To change the file's own later would be unsafe for root: by
        # then another user, who may write to the directory, can have put a link in its place.
        os.fchmod(listener.fileno(), mode)
        # Files that other threads make at this moment get no more than these permissions.
        mask = os.umask(0o077 & ~mode)
        try:
            listener.bind(path)
        finally:
            os.umask(mask)
        listener.listen(BACKLOG)
        return listener, removal_of(path)
    except OSError:
        listener.close()
        raise


def removal_of(path: str) -> Callable[[], None]:
    """A function that removes a socket's file, if another has not replaced it."""
    made, owner = os.stat(path), os.getpid()

    def remove() -> None:
        # A forked process has a copy of this function, but not of the socket. If the directory is root's, and this
        # process has become another user, the next server replaces the file.
        with suppress(FileNotFoundError, PermissionError):
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
    the last ``accept`` and the ``close`` would be reset. Does nothing outside Linux, nor, except for a line in the log,
    where the kernel refuses it: some kernels let only root attach filters to sockets.
    """
    if sys.platform == "linux":
        program = array("B", b"".join(struct.pack("=HBBI", *step) for step in _DROP_SYN))
        description = struct.pack("@HP", len(_DROP_SYN), program.buffer_info()[0])
        try:
            listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, description)
        except OSError as error:
            logger.warning(
                "this system does not let new connections be left to other processes, so connections that clients make "
                "just before this one closes its socket may be reset: %s",
                error.strerror,
            )


def describe(listener: socket.socket, scheme: str) -> str:
    """Return where a socket can be reached: a URL, or ``unix:`` and a path."""
    name = listener.getsockname()
    if isinstance(name, bytes):
        # Linux's abstract sockets, names without a file.
        return f"unix:@{name[1:].decode(errors='replace')}"
    if isinstance(name, str):
        return f"unix:{name}"
    host, port = name[:2]
    return f"{scheme}://[{host}]:{port}/" if ":" in host else f"{scheme}://{host}:{port}/"
