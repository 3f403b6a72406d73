"""A process of the supervisor's: start it, hear from it, give it orders, notice its end. In the supervisor."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from threadbridge.process.heartbeat import read_stacks
from threadbridge.sockets.inheritance import MESSAGE_SIZE, STOP, VARIABLE, Inheritance

logger = logging.getLogger("threadbridge")

# The service manager hears only from the supervisor.
MANAGERS_VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC")


class Child:
    """A process that runs this program from its beginning, with an `Inheritance`; raises ``OSError``.

    :param failures: how many of its predecessors in a row ended too soon.
    :param on_change: called when it accepts connections, and when it has ended.
    """

    def __init__(
        self,
        number: int,
        listeners: Sequence[socket.socket],
        admin_listeners: Sequence[socket.socket],
        agent_listeners: Sequence[socket.socket],
        run_directory: str | None,
        supervision: int,
        *,
        failures: int,
        start_limit: float,
        on_change: Callable[[Child], None],
    ) -> None:
        self.number = number
        self.failures = failures
        self.told_to_stop = False
        self.killed = False
        # The exit status; None while it runs.
        self.status: int | None = None
        # By `time.monotonic`: since when it accepts connections (None: not yet), and when it was last heard.
        self.ready_since: float | None = None
        self.heard = time.monotonic()
        # Set when it accepts connections, or has ended before it did.
        self.start_done = asyncio.Event()
        self.ended = asyncio.Event()
        self._on_change = on_change
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._channel.setblocking(False)
        self._stacks_file = os.memfd_create("stacks")
        inheritance = Inheritance(
            number,
            os.getpid(),
            theirs,
            listeners,
            admin_listeners,
            run_directory,
            self._stacks_file,
            start_limit,
            agent_listeners=agent_listeners,
            supervision=supervision,
        )
        env = {name: text for name, text in os.environ.items() if name not in MANAGERS_VARIABLES}
        with theirs:
            try:
                self._process = subprocess.Popen(
                    [sys.executable, *sys.orig_argv[1:]],
                    env={**env, VARIABLE: inheritance.as_text()},
                    pass_fds=inheritance.descriptors(),
                )
            except OSError:
                self._channel.close()
                os.close(self._stacks_file)
                raise
        logger.info("%s starts", self)
        self._pidfd = os.pidfd_open(self._process.pid)
        loop = asyncio.get_running_loop()
        loop.add_reader(self._pidfd, self._end)
        loop.add_reader(self._channel, self._hear)

    def __str__(self) -> str:
        return f"process {self.number} (pid {self._process.pid})"

    @property
    def is_ready(self) -> bool:
        """Whether it accepts connections, or did until it ended."""
        return self.ready_since is not None

    def tell(self, message: bytes) -> None:
        """Send one of the messages of `threadbridge.sockets.inheritance`."""
        try:
            self._channel.send(message)
        except OSError as error:
            # If the reason is that it has ended, `_end` is about to run.
            logger.warning("%s cannot be told to %s: %s", self, message.decode(), error.strerror)

    def stop(self) -> None:
        """Make it finish its requests and end."""
        self.told_to_stop = True
        if self.is_ready:
            self.tell(STOP)
        else:
            # While it imports the application it heeds nothing but signals, and has no requests.
            self._process.terminate()

    def kill(self) -> None:
        """Kill it, and log what it was doing as far as that is known."""
        if not self._log_stacks():
            with suppress(OSError):
                if Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()[0] in "Tt":
                    logger.error("%s is suspended, by SIGSTOP or by a debugger", self)
        self.killed = True
        self._process.kill()

    def _log_stacks(self) -> bool:
        stacks = read_stacks(self._stacks_file)
        if stacks:
            logger.error("%s, innermost calls first:\n%s", self, stacks)
        return bool(stacks)

    def _hear(self) -> None:
        try:
            message = self._channel.recv(MESSAGE_SIZE)
        except ConnectionResetError:
            message = b""
        if not message:
            asyncio.get_running_loop().remove_reader(self._channel)
            return
        self.heard = time.monotonic()
        if message.startswith(b"READY=1"):
            logger.info("%s accepts connections", self)
            self.ready_since = self.heard
            self.start_done.set()
            self._on_change(self)

    def _end(self) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        loop.remove_reader(self._channel)
        self._channel.close()
        self.status = self._process.wait()
        how = f"killed by {signal.Signals(-self.status).name}" if self.status < 0 else f"status {self.status}"
        as_told = self.told_to_stop and (self.status == 0 or not self.is_ready)
        logger.log(logging.INFO if as_told else logging.ERROR, "%s ended: %s", self, how)
        self._log_stacks()
        os.close(self._stacks_file)
        self.start_done.set()
        self.ended.set()
        self._on_change(self)
