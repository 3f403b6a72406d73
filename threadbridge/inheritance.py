"""What a supervised process has from its supervisor: sockets, a number, and a channel between the two. Both processes.

The supervisor is to its processes what systemd is to a service: it gives them the sockets that listen, hears from them
when they are ready, and tells them when to stop. They answer on the channel in the words of ``sd_notify(3)``.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

VARIABLE = "THREADBRIDGE_INHERITANCE"

# What the supervisor says on the channel. When the channel ends, so has the supervisor.
STOP, HURRY, REOPEN = b"stop", b"hurry", b"reopen"
MESSAGE_SIZE = 4096


class Inheritance(NamedTuple):
    """What a supervisor hands to one of its processes.

    :param number: tells the processes apart, from 1; the process that takes the place of another has the same.
    :param group: the pid of the supervisor.
    :param channel: connected to the supervisor; keeps messages apart (``SOCK_SEQPACKET``).
    :param listeners: the sockets that listen for requests; those of a Unix socket or for operators all processes share.
    :param admin_listeners: those that listen for the operators.
    :param run_directory: where the processes find each other.
    """

    number: int
    group: int
    channel: socket.socket
    listeners: Sequence[socket.socket]
    admin_listeners: Sequence[socket.socket]
    run_directory: str | None

    def log_file(self, path: str) -> str:
        """The log file of this process, by that of the supervisor: ``app.log`` makes ``app-1.log``."""
        return str(Path(path).with_stem(f"{Path(path).stem}-{self.number}"))

    def tell(self, *assignments: str) -> None:
        """Tell the supervisor, as `threadbridge.notify.notify` tells systemd.

        That it is gone is learned elsewhere, and one that has stood still for so long has enough to hear already.
        """
        with suppress(BrokenPipeError, ConnectionResetError, BlockingIOError):
            self.channel.send("\n".join(assignments).encode())

    def descriptors(self) -> list[int]:
        """The file descriptors that the process has to get."""
        return [each.fileno() for each in (self.channel, *self.listeners, *self.admin_listeners)]

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
    """What the supervisor has handed to this process; None when it has none. Only the first call gives it."""
    text = os.environ.pop(VARIABLE, None)
    if text is None:
        return None
    parts = json.loads(text)
    return Inheritance(
        parts["number"],
        parts["group"],
        _socket(parts["channel"]),
        [_socket(descriptor) for descriptor in parts["listeners"]],
        [_socket(descriptor) for descriptor in parts["admin_listeners"]],
        parts["run_directory"],
    )


def _socket(descriptor: int) -> socket.socket:
    # Not for programs that the application starts.
    os.set_inheritable(descriptor, False)
    inherited = socket.socket(fileno=descriptor)
    inherited.setblocking(False)
    return inherited
