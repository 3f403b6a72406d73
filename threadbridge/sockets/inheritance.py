"""What a process inherits from its supervisor: listening sockets, a number, and a channel between the two."""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import select
import socket
import struct
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from threadbridge.common.threads import NOT_STARTED

logger = logging.getLogger("threadbridge")

VARIABLE = "THREADBRIDGE_INHERITANCE"

# The supervisor's messages, unchanged from earlier versions: after an update, an old supervisor starts new processes.
# When the channel ends, so has the supervisor. DRAIN announces STOP.
DRAIN, STOP, STOP_NOW, REOPEN = b"drain", b"stop", b"hurry", b"reopen"
MESSAGE_SIZE = 4096
# The name of the thread that watches a start.
START_THREAD = "threadbridge-start"


class Supervision(NamedTuple):
    """What a supervisor tells about all its processes, for their metrics.

    :param processes: how many should serve.
    :param failures: how many have ended without having been told to, or were killed because they hung.
    :param reloaded: whether the last reload succeeded; true if there was none.
    """

    processes: int
    failures: int = 0
    reloaded: bool = True

    def write(self, descriptor: int) -> None:
        """Write it into the file that all processes inherit, over what was there. In the supervisor."""
        os.pwrite(descriptor, _SUPERVISION.pack(*self), 0)

    @classmethod
    def read(cls, descriptor: int) -> Supervision:
        """Read what the supervisor has written last. In one of its processes."""
        return cls(*_SUPERVISION.unpack(os.pread(descriptor, _SUPERVISION.size, 0)))


_SUPERVISION = struct.Struct("QQ?")


class Inheritance(NamedTuple):
    """What a supervisor hands to one of its processes.

    :param number: of the process, from 1; its replacement has the same.
    :param group: the pid of the supervisor.
    :param channel: connected to the supervisor; preserves message boundaries (``SOCK_SEQPACKET``).
    :param admin_listeners: the sockets for operators, which all processes share.
    :param run_directory: where the processes find each other.
    :param stacks_file: descriptor of a file, shared with the supervisor, to which `faulthandler` writes.
    :param start_limit: seconds until a process that does not accept connections yet is killed; 0 for never.
    :param started_event: descriptor of the ``eventfd`` that `started` sets; -1 in the supervisor.
    :param agent_listeners: the sockets for HAProxy's agent-check, which all processes share.
    :param supervision: descriptor of a file in which the supervisor writes a `Supervision`; -1 if there is none.
    :param preloads: whether the process does not serve, but imports the application and forks those that do.
    """

    number: int
    group: int
    channel: socket.socket
    listeners: Sequence[socket.socket]
    admin_listeners: Sequence[socket.socket]
    run_directory: str | None
    stacks_file: int
    start_limit: float
    started_event: int = -1
    # An old supervisor, of an earlier version, has none.
    agent_listeners: Sequence[socket.socket] = ()
    supervision: int = -1
    preloads: bool = False

    def log_file(self, path: str) -> str:
        """Return the log file of this process: for ``app.log``, ``app-1.log``; the supervisor's if it preloads."""
        if self.preloads:
            return path
        return str(Path(path).with_stem(f"{Path(path).stem}-{self.number}"))

    def supervision_reader(self) -> Callable[[], Supervision] | None:
        """Return a function that returns what the supervisor has written last; None if there is no such file."""
        return partial(Supervision.read, self.supervision) if self.supervision >= 0 else None

    def tell(self, *assignments: str) -> None:
        """Tell the supervisor, as `threadbridge.process.systemd.notify` tells systemd."""
        # That it is gone is noticed elsewhere. A full channel means that it has stood still, and has enough to read.
        with suppress(BrokenPipeError, ConnectionResetError, BlockingIOError):
            self.channel.send("\n".join(assignments).encode())

    def started(self) -> None:
        """End the watch for a hanging start, which `take_inheritance` began: the loop now hears the supervisor."""
        os.eventfd_write(self.started_event, 1)

    def descriptors(self) -> list[int]:
        """Return the file descriptors to pass to the process."""
        sockets = (self.channel, *self.listeners, *self.admin_listeners, *self.agent_listeners)
        files = [self.stacks_file] if self.supervision < 0 else [self.stacks_file, self.supervision]
        return [each.fileno() for each in sockets] + files

    def as_text(self) -> str:
        """Return the value of the environment variable `VARIABLE`, which `take_inheritance` reads."""
        # `json` asks for the numbers of sockets.
        return json.dumps(self._asdict(), default=socket.socket.fileno)


def take_inheritance() -> Inheritance | None:
    """Return what the supervisor has handed to this process, on the first call; None without a supervisor.

    From now on, the stacks of a crash go to the supervisor. Until `Inheritance.started` is called, so do those of a
    hanging start, and the process ends if the supervisor dies: otherwise it would keep the port without serving.
    """
    text = os.environ.pop(VARIABLE, None)
    return None if text is None else _inherited(json.loads(text))


def take_received(text: str, descriptors: Sequence[int]) -> Inheritance:
    """Return what the supervisor has handed to this forked process; as `take_inheritance`.

    :param descriptors: those of `Inheritance.descriptors`, with the numbers that they have in this process.
    """
    parts = json.loads(text)
    left = iter(descriptors)
    parts["channel"] = next(left)
    for name in ("listeners", "admin_listeners", "agent_listeners"):
        parts[name] = [next(left) for _ in parts[name]]
    parts["stacks_file"] = next(left)
    parts["supervision"] = next(left, -1)
    # Otherwise the stacks of its crash would go where those of the process go that has forked it.
    faulthandler.disable()
    return _inherited(parts)


def _inherited(parts: dict[str, Any]) -> Inheritance:
    for name in ("listeners", "admin_listeners", "agent_listeners"):
        parts[name] = [_socket(descriptor) for descriptor in parts.get(name, ())]
    inheritance = Inheritance(**{**parts, "channel": _socket(parts["channel"]), "started_event": os.eventfd(0)})
    for descriptor in (inheritance.stacks_file, inheritance.supervision):
        if descriptor >= 0:
            os.set_inheritable(descriptor, False)
    if not faulthandler.is_enabled():
        faulthandler.enable(inheritance.stacks_file)
    if inheritance.start_limit:
        faulthandler.dump_traceback_later(0.5 * inheritance.start_limit, file=inheritance.stacks_file)
    watch = threading.Thread(None, _end_with_supervisor, START_THREAD, (inheritance,), daemon=True)
    try:
        watch.start()
    except NOT_STARTED as error:
        logger.warning("cannot start the thread that notices the supervisor's death during the start: %s", error)
    return inheritance


def _end_with_supervisor(inheritance: Inheritance) -> None:
    poll = select.poll()
    poll.register(inheritance.started_event, select.POLLIN)
    # This reports only that the other end is closed: messages are for the loop.
    poll.register(inheritance.channel, 0)
    if inheritance.started_event not in (descriptor for descriptor, _ in poll.poll()):
        logger.error("the supervisor has died before this process was ready: exiting")
        logging.shutdown()
        os._exit(1)
    os.close(inheritance.started_event)


def _socket(descriptor: int) -> socket.socket:
    # Programs that the application starts do not inherit it.
    os.set_inheritable(descriptor, False)
    inherited = socket.socket(fileno=descriptor)
    inherited.setblocking(False)
    return inherited
