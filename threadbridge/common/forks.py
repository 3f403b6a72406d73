"""Forked copies of this process, which application code makes: they let go of what is the server's, and never serve.

A copy has one thread, that which called `os.fork`. What it has of the server's sockets is put out of its reach, without
a word to whoever is at their other ends; and where the application's call ends, the copy ends. Programs that are
started by `subprocess` inherit nothing in the first place.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import stat
import sys
import traceback
import weakref
from asyncio import AbstractEventLoop
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import thread as futures_thread
from typing import Any, NoReturn, Protocol


class Copied(Protocol):
    """What must know that it is only a copy, in a forked process."""

    def become_copy(self) -> None: ...


class Connected(Protocol):
    """A connection to a database."""

    @property
    def descriptor(self) -> int | None: ...


class Serving(Copied, Protocol):
    """What workers post to."""

    @property
    def loop(self) -> AbstractEventLoop: ...


_serving: set[Serving] = set()
_listeners: weakref.WeakSet[socket.socket] = weakref.WeakSet()
_connections: weakref.WeakSet[Connected] = weakref.WeakSet()
_others: weakref.WeakSet[Copied] = weakref.WeakSet()
_first: list[Callable[[], object]] = []
_handlers: dict[int, Any] = {}


def serves(serving: Serving) -> None:
    """A loop begins to serve; forked processes must not touch it nor its sockets."""
    _serving.add(serving)


def serves_no_more(serving: Serving) -> None:
    """The opposite of `serves`."""
    _serving.discard(serving)


def listens(listener: socket.socket) -> None:
    """Forked processes must not hold this listener, nor connections that were accepted there."""
    _listeners.add(listener)


def connects(connection: Connected) -> None:
    """Forked processes must not use this connection of the pool's, nor tell the database that it is closed."""
    _connections.add(connection)


def copies(copied: Copied) -> None:
    """This is to be told in forked processes that it is a copy."""
    _others.add(copied)


def calls_first(function: Callable[[], object]) -> None:
    """This is to be called in forked processes before anything there is told that it is a copy."""
    _first.append(function)


def takes_signal(number: signal.Signals, handler: Any) -> None:
    """The server is about to handle this signal; forked processes get the previous handler back."""
    _handlers.setdefault(number, handler)


def leave(error: BaseException | None = None) -> NoReturn:
    """End this forked process, as its thread has come back to the server's code, or was ended by an exception.

    Not by `sys.exit`: above are the frames of a worker, or of the loop, that would go on.
    """
    status = 0
    if isinstance(error, SystemExit):
        if isinstance(error.code, int):
            status = error.code & 0xFF
        elif error.code is not None:
            print(error.code, file=sys.stderr)
            status = 1
    elif error is not None:
        traceback.print_exception(error)
        status = 1
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(status)


def _become_copy() -> None:
    if not _serving:
        # Servers may be forked before they serve, as with `tornado.process.fork_processes`.
        return
    descriptors = {listener.fileno() for listener in list(_listeners)}
    for serving in _serving:
        descriptors.update(_descriptors_of(serving.loop))
    descriptors.update(_accepted(descriptors))
    descriptors.update(connection.descriptor or -1 for connection in list(_connections))
    descriptors.add(_restore_signals())
    # Before anything is let go: a connection to the database that nobody has any more says good-bye on its socket, and
    # the database ends what is the parent's.
    _take_away(descriptors)
    for function in _first:
        function()
    # At the copy's end the interpreter would wait for the executors' threads, one of which is its only thread.
    getattr(futures_thread, "_threads_queues", {}).clear()
    for copied in (*_serving, *_others):
        copied.become_copy()
    _serving.clear()
    _listeners.clear()
    _connections.clear()


def _descriptors_of(loop: AbstractEventLoop) -> Iterator[int]:
    """What a loop watches, and what it watches with: only Linux tells, whichever loop it is."""
    selector: Any = getattr(loop, "_selector", None)
    number: int = selector.fileno() if selector is not None else getattr(loop, "_get_backend_id", lambda: -1)()
    with contextlib.suppress(OSError), open(f"/proc/self/fdinfo/{number}") as info:
        yield number
        for line in info:
            if line.startswith("tfd:"):
                yield int(line.split()[1])


def _accepted(listeners: Iterable[int]) -> set[int]:
    """The connections that these sockets have accepted, as far as they listen; also those of this very moment."""
    timeout = socket.getdefaulttimeout()
    # With one, looking at a socket would change it, also for the parent.
    socket.setdefaulttimeout(None)
    try:
        names = {_local_name(each, listening=True) for each in listeners} - {None}
        return {number for number in _open_descriptors() if names and _local_name(number) in names}
    finally:
        socket.setdefaulttimeout(timeout)


def _open_descriptors() -> Iterable[int]:
    try:
        return [int(name) for name in os.listdir("/dev/fd")]
    except OSError:
        # Too many are open to look, or there is no such directory.
        return range(min(resource.getrlimit(resource.RLIMIT_NOFILE)[0], 65536))


def _local_name(descriptor: int, *, listening: bool = False) -> tuple[bool, object] | None:
    """The port or the path to which a stream socket is bound; None for anything else."""
    with contextlib.suppress(OSError):
        if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            found = socket.socket(fileno=descriptor)
            try:
                name = found.getsockname()
                if listening and not found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                    return None
                if found.family in (socket.AF_INET, socket.AF_INET6):
                    return False, name[1]
                if found.family == socket.AF_UNIX and name:
                    return True, name
            finally:
                found.detach()
    return None


def _take_away(descriptors: Iterable[int]) -> None:
    # Not closed only: a number that is free is given to the application's next file, which the old owner would close.
    try:
        nothing = os.open(os.devnull, os.O_RDWR)
    except OSError:
        nothing = -1
    for descriptor in descriptors:
        if descriptor > 2:
            with contextlib.suppress(OSError):
                if nothing < 0:
                    os.close(descriptor)
                else:
                    os.dup2(nothing, descriptor, inheritable=False)
    if nothing >= 0:
        os.close(nothing)


def _restore_signals() -> int:
    """Handle signals as before the server; gives the descriptor by which the parent's loop hears of them."""
    # The copy would pass those that it gets on to the parent.
    descriptor = -1
    # Only the main thread may, which that one is now, but in an interpreter besides the main one.
    with contextlib.suppress(ValueError):
        descriptor = signal.set_wakeup_fd(-1)
        for number, handler in _handlers.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
    _handlers.clear()
    return descriptor


os.register_at_fork(after_in_child=_become_copy)
