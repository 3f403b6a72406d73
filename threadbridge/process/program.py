"""A process as the supervisor started it: this program from its beginning. Its end, and signals to it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Protocol

from threadbridge.sockets.inheritance import VARIABLE, Inheritance

# The service manager hears only from the supervisor.
MANAGERS_VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC")


class Program(Protocol):
    """A process, however it was started."""

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, unless it has ended."""


# Starts a process with an inheritance; calls one function with its pid, and the other one at its end with its status,
# negative if a signal ended it. Raises ``OSError``.
Launch = Callable[[Inheritance, Callable[[int], None], Callable[[int], None]], Program]


class Executed:
    """This program, started again; see `Launch`."""

    def __init__(
        self, inheritance: Inheritance, on_start: Callable[[int], None], on_end: Callable[[int], None]
    ) -> None:
        env = {name: text for name, text in os.environ.items() if name not in MANAGERS_VARIABLES}
        self._process = subprocess.Popen(
            [sys.executable, *sys.orig_argv[1:]],
            env={**env, VARIABLE: inheritance.as_text()},
            pass_fds=inheritance.descriptors(),
        )
        self._pidfd = os.pidfd_open(self._process.pid)
        self._on_end = on_end
        asyncio.get_running_loop().add_reader(self._pidfd, self._end)
        on_start(self._process.pid)

    def signal(self, number: signal.Signals) -> None:
        """See `Program`."""
        self._process.send_signal(number)

    def _end(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._on_end(self._process.wait())
