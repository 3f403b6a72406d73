"""A process of the supervisor's, as the supervisor sees it: start it, hear from it, tell it what to do, see it end."""

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

MANAGERS_VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC")


class Child:
    """A process that runs this program anew, with what it inherits. In the supervisor, on its loop.

    :param number: what the process is called, see `Inheritance`; so are the sockets and the directory.
    :param failures: how many processes before it, each in the place of the one before, have ended too soon.
    :param start_limit: see `Inheritance`.
    :param on_change: called when it accepts connections, and when it has ended.

    Raises ``OSError`` when the system has no room for another process.
    """

    def __init__(
        self,
        number: int,
        listeners: Sequence[socket.socket],
        admin_listeners: Sequence[socket.socket],
        run_directory: str | None,
        *,
        failures: int,
        start_limit: float,
        on_change: Callable[[Child], None],
    ) -> None:
        self.number = number
        self.failures = failures
        self.told_to_stop = False
        self.killed = False
        # Of the process; None while it runs.
        self.status: int | None = None
        # Seconds of `time.monotonic`: since when it accepts connections, None for not yet, and when it was heard last.
        self.ready_since: float | None = None
        self.heard = time.monotonic()
        # It accepts connections, or has ended without having come so far.
        self.settled = asyncio.Event()
        self.ended = asyncio.Event()
        self._on_change = on_change
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._channel.setblocking(False)
        with theirs:
            self._stacks_file = os.memfd_create("stacks")
            inheritance = Inheritance(
                number, os.getpid(), theirs, listeners, admin_listeners, run_directory, self._stacks_file, start_limit
            )
            # What the service manager wants to hear of the service, it hears from the supervisor.
            env = {name: text for name, text in os.environ.items() if name not in MANAGERS_VARIABLES}
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
            # Its end, if that is the reason, is seen elsewhere.
            logger.warning("%s cannot be told to %s: %s", self, message.decode(), error.strerror)

    def stop(self) -> None:
        """Have it answer what it has been asked, and end."""
        self.told_to_stop = True
        if self.is_ready:
            self.tell(STOP)
        else:
            # While it imports the application it listens to nothing but signals, and has been asked nothing.
            self._process.terminate()

    def kill(self) -> None:
        """End it, whatever it is doing, and log what that was as far as it is known."""
        stacks = read_stacks(self._stacks_file)
        if stacks:
            logger.error("%s, innermost calls first:\n%s", self, stacks)
        elif self._is_stopped():
            logger.error("%s is suspended, by SIGSTOP or by a debugger", self)
        self.killed = True
        self._process.kill()

    def _is_stopped(self) -> bool:
        with suppress(OSError):
            return Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()[0] in "Tt"
        return False

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
            self.settled.set()
            self._on_change(self)

    def _end(self) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        loop.remove_reader(self._channel)
        self._channel.close()
        self.status = self._process.wait()
        stacks = read_stacks(self._stacks_file)
        os.close(self._stacks_file)
        how = f"killed by {signal.Signals(-self.status).name}" if self.status < 0 else f"status {self.status}"
        as_told = self.told_to_stop and (self.status == 0 or not self.is_ready)
        logger.log(logging.INFO if as_told else logging.ERROR, "%s ended: %s", self, how)
        if stacks:
            logger.error("%s, innermost calls first:\n%s", self, stacks)
        self.settled.set()
        self.ended.set()
        self._on_change(self)
