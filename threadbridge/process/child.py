"""A process of the supervisor's: start it, hear from it, give it orders, notice its end. In the supervisor."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from threadbridge.process.heartbeat import read_stacks
from threadbridge.process.program import Launch
from threadbridge.sockets.inheritance import MESSAGE_SIZE, STOP, Inheritance

logger = logging.getLogger("threadbridge")


class Child:
    """A process that serves, with an `Inheritance`; raises ``OSError``.

    :param launch: starts it.
    :param failures: how many of its predecessors in a row ended too soon.
    :param max_requests: how many requests it is to answer, see `renewal`; 0 for any number.
    :param on_change: called when it accepts connections, and when it has ended.
    """

    def __init__(
        self,
        launch: Launch,
        number: int,
        listeners: Sequence[socket.socket],
        admin_listeners: Sequence[socket.socket],
        agent_listeners: Sequence[socket.socket],
        run_directory: str | None,
        supervision: int,
        *,
        failures: int,
        max_requests: int,
        start_limit: float,
        on_change: Callable[[Child], None],
    ) -> None:
        self.number = number
        self.failures = failures
        self.max_requests = max_requests
        # How many it has answered, as of when it was last heard.
        self.requests = 0
        # 0 until it is known.
        self.pid = 0
        self.told_to_stop = False
        self.killed = False
        # The exit status; None while it runs.
        self.status: int | None = None
        # By `time.monotonic`: since when it accepts connections (None: not yet), and when it was last heard.
        self.ready_since: float | None = None
        self.started = self.heard = time.monotonic()
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
        with theirs:
            try:
                self._program = launch(inheritance, self._start, self._end)
            except OSError:
                self._channel.close()
                os.close(self._stacks_file)
                raise
        asyncio.get_running_loop().add_reader(self._channel, self._hear)

    def __str__(self) -> str:
        return f"process {self.number} (pid {self.pid})"

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
            self._program.signal(signal.SIGTERM)

    def kill(self) -> None:
        """Kill it, and log what it was doing as far as that is known."""
        if not self._log_stacks():
            with suppress(OSError):
                if Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] in "Tt":
                    logger.error("%s is suspended, by SIGSTOP or by a debugger", self)
        self.killed = True
        self._program.signal(signal.SIGKILL)

    def _log_stacks(self) -> bool:
        stacks = read_stacks(self._stacks_file)
        if stacks:
            logger.error("%s, innermost calls first:\n%s", self, stacks)
        return bool(stacks)

    def _start(self, pid: int) -> None:
        self.pid = pid
        logger.info("%s starts", self)

    def _hear(self) -> None:
        try:
            message = self._channel.recv(MESSAGE_SIZE)
        except ConnectionResetError:
            message = b""
        if not message:
            asyncio.get_running_loop().remove_reader(self._channel)
            return
        self.heard = time.monotonic()
        if answered := re.search(rb"^REQUESTS=(\d+)", message, re.MULTILINE):
            self.requests = int(answered[1])
        if message.startswith(b"READY=1"):
            logger.info("%s accepts connections", self)
            self.ready_since = self.heard
            if self.told_to_stop:
                # It may have missed the signal, as when the application ignores it.
                self.tell(STOP)
            self.start_done.set()
            self._on_change(self)

    def _end(self, status: int) -> None:
        asyncio.get_running_loop().remove_reader(self._channel)
        self._channel.close()
        self.status = status
        how = f"killed by {signal.Signals(-self.status).name}" if self.status < 0 else f"status {self.status}"
        as_told = self.told_to_stop and (self.status == 0 or not self.is_ready)
        logger.log(logging.INFO if as_told else logging.ERROR, "%s ended: %s", self, how)
        self._log_stacks()
        os.close(self._stacks_file)
        self.start_done.set()
        self.ended.set()
        self._on_change(self)
