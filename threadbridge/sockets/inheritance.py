"""What a supervised process has from its supervisor: sockets, a number, and a channel between the two. Both processes.

The supervisor is to its processes what systemd is to a service: it gives them the sockets that listen, hears from them
when they are ready, and tells them when to stop. They answer on the channel in the words of ``sd_notify(3)``.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import select
import socket
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from threadbridge.common.threads import NOT_STARTED

logger = logging.getLogger("threadbridge")

VARIABLE = "THREADBRIDGE_INHERITANCE"

# What the supervisor says on the channel. When the channel ends, so has the supervisor.
# The words are those of earlier versions: after an update, an old supervisor starts new processes.
STOP, STOP_NOW, REOPEN = b"stop", b"hurry", b"reopen"
MESSAGE_SIZE = 4096


class Inheritance(NamedTuple):
    """What a supervisor hands to one of its processes.

    :param number: tells the processes apart, from 1; the process that takes the place of another has the same.
    :param group: the pid of the supervisor.
    :param channel: connected to the supervisor; keeps messages apart (``SOCK_SEQPACKET``).
    :param listeners: the sockets that listen for requests; those of a Unix socket or for operators all processes share.
    :param admin_listeners: those that listen for the operators.
    :param run_directory: where the processes find each other.
    :param stacks_file: descriptor of a file, shared with the supervisor, for `faulthandler`: what the threads did when
        the process crashed or hung.
    :param start_limit: seconds after which a process is killed that does not accept connections yet; 0 for never.
    :param started_event: descriptor of an ``eventfd`` that says that it does; -1 in the supervisor.
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

    def log_file(self, path: str) -> str:
        """The log file of this process, by that of the supervisor: ``app.log`` makes ``app-1.log``."""
        return str(Path(path).with_stem(f"{Path(path).stem}-{self.number}"))

    def tell(self, *assignments: str) -> None:
        """Tell the supervisor, as `threadbridge.process.systemd.notify` tells systemd.

        That it is gone is learned elsewhere, and one that has stood still for so long has enough to hear already.
        """
        with suppress(BrokenPipeError, ConnectionResetError, BlockingIOError):
            self.channel.send("\n".join(assignments).encode())

    def started(self) -> None:
        """Say that the process hears the supervisor on its loop from now on; ends what `take_inheritance` began."""
        os.eventfd_write(self.started_event, 1)

    def descriptors(self) -> list[int]:
        """The file descriptors that the process has to get."""
        return [each.fileno() for each in (self.channel, *self.listeners, *self.admin_listeners)] + [self.stacks_file]

    def as_text(self) -> str:
        """For the environment variable `VARIABLE`; `take_inheritance` reads it."""
        parts = {
            **self._asdict(),
            "channel": self.channel.fileno(),
            "listeners": [each.fileno() for each in self.listeners],
            "admin_listeners": [each.fileno() for each in self.admin_listeners],
        }
        return json.dumps(parts)


def take_inheritance() -> Inheritance | None:
    """What the supervisor has handed to this process; None when it has none. Only the first call gives it.

    From now on the stacks of a crash go to the supervisor, and until `Inheritance.started` is called, so do those of a
    start that hangs, and the process ends if the supervisor dies: it would keep the port without serving anybody.
    """
    text = os.environ.pop(VARIABLE, None)
    if text is None:
        return None
    parts = json.loads(text)
    inheritance = Inheritance(
        parts["number"],
        parts["group"],
        _socket(parts["channel"]),
        [_socket(descriptor) for descriptor in parts["listeners"]],
        [_socket(descriptor) for descriptor in parts["admin_listeners"]],
        parts["run_directory"],
        parts["stacks_file"],
        parts["start_limit"],
        os.eventfd(0),
    )
    os.set_inheritable(inheritance.stacks_file, False)
    if not faulthandler.is_enabled():
        faulthandler.enable(inheritance.stacks_file)
    if inheritance.start_limit:
        faulthandler.dump_traceback_later(0.5 * inheritance.start_limit, file=inheritance.stacks_file)
    watching = threading.Thread(
        target=_end_with_supervisor, args=(inheritance,), name="threadbridge-start", daemon=True
    )
    try:
        watching.start()
    except NOT_STARTED as error:
        # Until it serves, then, it does not notice.
        logger.warning("no thread can be started that waits for the supervisor's death during the start: %s", error)
    return inheritance


def _end_with_supervisor(inheritance: Inheritance) -> None:
    poll = select.poll()
    poll.register(inheritance.started_event, select.POLLIN)
    # Only that the other end is closed: messages are for the loop.
    poll.register(inheritance.channel, 0)
    if inheritance.started_event not in (descriptor for descriptor, _ in poll.poll()):
        logger.error("the supervisor has died before this process was ready: exiting")
        logging.shutdown()
        os._exit(1)
    os.close(inheritance.started_event)


def _socket(descriptor: int) -> socket.socket:
    # Not for programs that the application starts.
    os.set_inheritable(descriptor, False)
    inherited = socket.socket(fileno=descriptor)
    inherited.setblocking(False)
    return inherited
