"""Makes processes that the application forks let go of the server's sockets, and keeps them from serving.

The copy's only thread is the one that called `os.fork`. It loses the server's sockets without a word to their other
ends, and exits where the application's call ends. Programs started by `subprocess` inherit none of this anyway.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import sys
import traceback
import weakref
from asyncio import AbstractEventLoop
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import thread as futures_thread
from typing import Any, NoReturn, Protocol


class Copied(Protocol):
    """An object that must know when it is only a forked process's copy."""

    def become_copy(self) -> None: ...


class Connected(Protocol):
    """A connection to a database."""

    @property
    def descriptor(self) -> int | None: ...


class Serving(Copied, Protocol):
    """The object through which workers reach a loop that serves."""

    @property
    def loop(self) -> AbstractEventLoop: ...


_serving: set[Serving] = set()
_listeners: weakref.WeakSet[socket.socket] = weakref.WeakSet()
_connections: weakref.WeakSet[Connected] = weakref.WeakSet()
_others: weakref.WeakSet[Copied] = weakref.WeakSet()
_first: list[Callable[[], object]] = []
_handlers: dict[int, Any] = {}
# The descriptors by which signals wake loops.
_wakers: set[int] = set()

# Register a loop that serves, and unregister it: forked processes touch neither it nor its sockets.
serves, serves_no_more = _serving.add, _serving.discard
# Register a listener: forked processes hold neither it nor the connections that it accepted.
listens = _listeners.add
# Register a connection of the pool: forked processes neither use it nor tell the database that it is closed.
connects = _connections.add
# Register any other object whose `become_copy` forked processes call, and a function that they call before these.
copies, calls_first = _others.add, _first.append
# Register the handler that a signal had before the server's; forked processes restore it.
takes_signal = _handlers.setdefault


def wakes_on_signals() -> None:
    """Register the descriptor by which signals wake the loop that has just set a handler. Main thread.

    From Python 3.12 on, asyncio forgets it in a forked process before this module is called there.
    """
    descriptor = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(descriptor)
    _wakers.add(descriptor)


def leave(error: BaseException | None = None) -> NoReturn:
    """End this forked process: its thread has returned to the server's code, or an exception has ended it."""
    # `sys.exit` would not do: the frames of a worker, or of the loop, are above, and would go on.
    code = error.code if isinstance(error, SystemExit) else None if error is None else 1
    if not isinstance(code, int | None):
        print(code, file=sys.stderr)
        code = 1
    elif error is not None and not isinstance(error, SystemExit):
        traceback.print_exception(error)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit((code or 0) & 0xFF)


def _become_copy() -> None:
    if not _serving:
        # A server may be forked before it serves, as by `tornado.process.fork_processes`.
        return
    # First: a database connection that is freed says goodbye on its socket, which would end the parent's session.
    for step in (_let_go, *_first, *(copied.become_copy for copied in (*_serving, *_others))):
        try:
            step()
        except Exception:  # noqa: BLE001 - it is shown, and the other steps must be taken
            traceback.print_exc()
    # Otherwise the copy, when it exits, would wait for the executors' threads, one of which is its own.
    getattr(futures_thread, "_threads_queues", {}).clear()
    _serving.clear()
    _listeners.clear()
    _connections.clear()


def _let_go() -> None:
    """Restore the signal handlers, and take away what belongs to the server."""
    # A server that is about to end has closed its listeners.
    descriptors = {listener.fileno() for listener in list(_listeners)} - {-1}
    for serving in _serving:
        descriptors.update(_descriptors_of(serving.loop))
    descriptors.update(_accepted(descriptors))
    descriptors.update(_wakers)
    descriptors.update(connection.descriptor or -1 for connection in list(_connections))
    # In a subinterpreter even the only thread may not set handlers.
    with contextlib.suppress(ValueError):
        # Otherwise the copy's signals would wake the parent's loop.
        descriptors.add(signal.set_wakeup_fd(-1))
        for number, handler in _handlers.items():
            # None is a handler that was not set by Python.
            signal.signal(number, handler or signal.SIG_DFL)
    _handlers.clear()
    _wakers.clear()
    _take_away(descriptors)


def _descriptors_of(loop: AbstractEventLoop) -> Iterator[int]:
    """The descriptors that a loop of asyncio or uvloop watches, and its own epoll's. On Linux only."""
    selector: Any = getattr(loop, "_selector", None)
    number: int = selector.fileno() if selector is not None else getattr(loop, "_get_backend_id", lambda: -1)()
    with contextlib.suppress(OSError), open(f"/proc/self/fdinfo/{number}") as info:
        yield number
        for line in info:
            if line.startswith("tfd:"):
                yield int(line.split()[1])


def _accepted(listeners: Iterable[int]) -> set[int]:
    """The connections accepted from those of these sockets that listen, also by another thread just now."""
    timeout = socket.getdefaulttimeout()
    # A default timeout would make the sockets examined here non-blocking, for the parent too.
    socket.setdefaulttimeout(None)
    try:
        names = {_local_name(each, listening=True) for each in listeners} - {None}
        try:
            open_ones: Iterable[int] = [int(name) for name in os.listdir("/dev/fd")]
        except OSError:
            # No descriptor is left to list them with, or there is no such directory.
            open_ones = range(min(resource.getrlimit(resource.RLIMIT_NOFILE)[0], 65536))
        return {number for number in open_ones if names and _local_name(number) in names}
    finally:
        socket.setdefaulttimeout(timeout)


def _local_name(descriptor: int, *, listening: bool = False) -> object:
    """The port or path that a socket, or a listening one, is bound to; None for anything else."""
    with contextlib.suppress(OSError):
        found = socket.socket(fileno=descriptor)
        try:
            if not listening or found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                name = found.getsockname()
                return name[1] if found.family in (socket.AF_INET, socket.AF_INET6) else name or None
        finally:
            found.detach()
    return None


def _take_away(descriptors: Iterable[int]) -> None:
    # Not just closed: the application's next file would get the free number, and the old owner would close that.
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


os.register_at_fork(after_in_child=_become_copy)
