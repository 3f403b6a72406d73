"""The process that imports the application for others: forks those that serve. Main thread, without a loop.

Forked processes share its memory until one of them writes to it. They have the application's objects but not its
threads, and would share its connections; so it must have neither.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import select
import signal
import socket
import stat
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress

from threadbridge.common.interpreter import freeze_loaded
from threadbridge.process.application_pools import ApplicationPools, close_idle_connections
from threadbridge.process.identity import set_title
from threadbridge.process.logs import reopen_log_files
from threadbridge.process.signals import RESIZING, forget_early_signals
from threadbridge.process.standard_error import LOG_THREAD
from threadbridge.settings.table import Settings
from threadbridge.settings.values import SettingError
from threadbridge.sockets.inheritance import REOPEN, START_THREAD, Inheritance, take_received

logger = logging.getLogger("threadbridge")

# As large as a message with the most descriptors that one may have.
MESSAGE_SIZE, MOST_DESCRIPTORS = 65536, 253
# Linux closes descriptors that come with a message when the process becomes another program.
_RECEIVING = socket.MSG_CMSG_CLOEXEC


def fork_when_told(preloader: Inheritance, settings: Settings) -> tuple[Inheritance, ApplicationPools]:
    """Fork a process whenever the supervisor wants one, and return in each of them, with what it inherits.

    The process itself ends here, once the supervisor has gone or lets it, and the processes have ended. Raises
    `SettingError` if the application has threads or connections that forked processes could not use, and ``ValueError``
    for an unusable pool.
    """
    set_title("preloaded application")
    _refuse_threads()
    close_idle_connections()
    # Not in each process: it looks at all objects, and so would copy their memory.
    pools = ApplicationPools(settings)
    _refuse_connections()
    # From now on the channel says whether the supervisor lives, not the thread, which must not be there at a fork.
    preloader.started()
    for thread in threading.enumerate():
        if thread.name == START_THREAD:
            thread.join()
    faulthandler.cancel_dump_traceback_later()
    # Signals that are sent to all processes, by a terminal or a service manager, are for the others.
    others = (signal.SIGTERM, signal.SIGINT, *RESIZING)
    handlers = {number: signal.signal(number, signal.SIG_IGN) for number in others}
    # If the application ignores it, the kernel keeps no status of processes that have ended.
    handlers[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    logger.info("the application is imported; its processes are forked from this one (pid %d)", os.getpid())
    # Otherwise the first collection in each process would write to all objects, and so copy their memory.
    freeze_loaded()
    return _fork_in_turn(preloader.channel, handlers), pools


def _fork_in_turn(channel: socket.socket, handlers: Mapping[signal.Signals, object]) -> Inheritance:
    # The descriptors by which this process notices the ends of the others, with their pids.
    processes: dict[int, int] = {}
    # Not with epoll, which forked processes would share.
    poll = select.poll()
    channel.setblocking(True)
    poll.register(channel, select.POLLIN)
    is_wanted = True
    while is_wanted or processes:
        for descriptor, _ in poll.poll():
            if descriptor in processes:
                poll.unregister(descriptor)
                os.close(descriptor)
                pid, status = os.waitpid(processes.pop(descriptor), 0)
                _tell(channel, {"ended": pid, "status": os.waitstatus_to_exitcode(status)})
                continue
            try:
                text, descriptors, _, _ = socket.recv_fds(channel, MESSAGE_SIZE, MOST_DESCRIPTORS, _RECEIVING)
            except ConnectionResetError:
                # The supervisor has died before it has read everything.
                text, descriptors = b"", []
            if not text:
                poll.unregister(channel)
                is_wanted = False
            elif text == REOPEN:
                reopen_log_files()
            else:
                pid = _fork(channel)
                if pid == 0:
                    for each in (channel.detach(), *processes):
                        os.close(each)
                    for number, handler in handlers.items():
                        signal.signal(number, handler)  # type: ignore[arg-type]
                    forget_early_signals()
                    return take_received(text.decode(), descriptors)
                if pid > 0:
                    pidfd = os.pidfd_open(pid)
                    processes[pidfd] = pid
                    poll.register(pidfd, select.POLLIN)
                    _tell(channel, {"pid": pid}, pidfd)
                for each in descriptors:
                    os.close(each)
    sys.exit(0)


def _fork(channel: socket.socket) -> int:
    for stream in (sys.stdout, sys.stderr):
        # Otherwise both would write what is in its buffer.
        with suppress(OSError, ValueError):
            stream.flush()
    try:
        return os.fork()
    except OSError as error:
        _tell(channel, {"error": error.strerror})
        return -1


def _tell(channel: socket.socket, message: Mapping[str, object], *descriptors: int) -> None:
    # The supervisor may have died.
    with suppress(BrokenPipeError, ConnectionResetError):
        socket.send_fds(channel, [json.dumps(message).encode()], descriptors)


def _refuse_threads() -> None:
    theirs = [
        thread.name
        for thread in threading.enumerate()
        if thread is not threading.main_thread() and thread.name not in (START_THREAD, LOG_THREAD)
    ]
    if theirs:
        raise SettingError(
            f"preload: the application has started threads when it was imported, which forked processes lack: "
            f"{', '.join(theirs)}. Start them in on_worker_start or in the first request, or leave preload out"
        )


def _refuse_connections() -> None:
    found = sorted(set(_connections()))
    if found:
        raise SettingError(
            f"preload: the application has opened connections when it was imported, and forked processes would share "
            f"them: to {', '.join(found)}. Close them again, open them in on_worker_start or in the first request, or "
            "leave preload out"
        )


def _connections() -> Iterator[str]:
    """Where the process's connections lead, but not its standard streams, nor pairs of sockets within the process."""
    timeout = socket.getdefaulttimeout()
    # A default timeout would make the sockets examined here non-blocking.
    socket.setdefaulttimeout(None)
    try:
        for number in map(int, os.listdir("/proc/self/fd")):
            # Others are no sockets, not connected, or gone, as the directory's own.
            with suppress(OSError):
                if number > 2 and stat.S_ISSOCK(os.fstat(number).st_mode):
                    yield from _peer(number)
    finally:
        socket.setdefaulttimeout(timeout)


def _peer(descriptor: int) -> Iterator[str]:
    examined = socket.socket(fileno=descriptor)
    try:
        # Datagrams, such as those to syslog, do not get mixed up.
        if examined.type != socket.SOCK_DGRAM and (peer := examined.getpeername()):
            is_internet = examined.family in (socket.AF_INET, socket.AF_INET6)
            yield f"{peer[0]}:{peer[1]}" if is_internet else str(peer)
    finally:
        examined.detach()
