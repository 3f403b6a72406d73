"""The process that has imported the application and forks those that serve, as the supervisor sees it.

It is this program, run from its beginning; `forking` is what it does. A reload starts another one, with the
application's new version. Their processes are its children, so it waits for them and tells the supervisor their status.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from threadbridge.process.heartbeat import read_stacks
from threadbridge.process.program import Executed, Program
from threadbridge.sockets.inheritance import MESSAGE_SIZE, REOPEN, Inheritance

logger = logging.getLogger("threadbridge")


class Preloader:
    """Start the process; raises ``OSError``. It has imported the application once it answers the first `fork`.

    :param start_limit: seconds until it writes its stacks, twice, if it has not imported the application by then.
    """

    def __init__(self, run_directory: str | None, start_limit: float) -> None:
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._channel.setblocking(False)
        self._stacks_file = os.memfd_create("stacks")
        # Those that it has not forked yet, in order, and those that it has, by their pids.
        self._waiting: deque[_Forked] = deque()
        self._forked: dict[int, _Forked] = {}
        self._is_retired = False
        self._pid = 0
        self.ended = asyncio.Event()
        inheritance = Inheritance(
            0, os.getpid(), theirs, (), (), run_directory, self._stacks_file, start_limit, preloads=True
        )
        with theirs:
            try:
                self._program = Executed(inheritance, self._on_start, self._on_end)
            except OSError:
                self._channel.close()
                os.close(self._stacks_file)
                raise
        asyncio.get_running_loop().add_reader(self._channel, self._hear)

    def __str__(self) -> str:
        return f"the process that imports the application (pid {self._pid})"

    def fork(self, inheritance: Inheritance, on_start: Callable[[int], None], on_end: Callable[[int], None]) -> _Forked:
        """Fork a process that serves; see `Launch`."""
        socket.send_fds(self._channel, [inheritance.as_text().encode()], inheritance.descriptors())
        forked = _Forked(self.kill, on_start, on_end)
        self._waiting.append(forked)
        return forked

    def reopen_log_files(self) -> None:
        """Make it open its log files again."""
        with suppress(OSError):
            self._channel.send(REOPEN)

    def retire(self) -> None:
        """Let it end, once the processes that it has forked have ended."""
        self._is_retired = True
        with suppress(OSError):
            self._channel.shutdown(socket.SHUT_WR)

    async def end(self, patience: float) -> None:
        """Let it end; kill it if that takes more than so many seconds."""
        self.retire()
        with suppress(TimeoutError):
            await asyncio.wait_for(self.ended.wait(), patience)
        if not self.ended.is_set():
            logger.error("%s did not end when told to: killing it", self)
            self.kill()
            await self.ended.wait()

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """End it, without waiting for its processes."""
        self._program.signal(number)

    def _on_start(self, pid: int) -> None:
        self._pid = pid
        logger.info("%s starts", self)

    def _hear(self) -> bool:
        """Read a message; return whether there was one."""
        try:
            text, descriptors, _, _ = socket.recv_fds(self._channel, MESSAGE_SIZE, 1, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return False
        except ConnectionResetError:
            text = b""
        if not text:
            asyncio.get_running_loop().remove_reader(self._channel)
            return False
        message = json.loads(text)
        if "ended" in message:
            self._forked.pop(message["ended"]).end(message["status"])
            return True
        forked = self._waiting.popleft()
        if "error" in message:
            logger.error("%s cannot fork: %s", self, message["error"])
            forked.end(1)
        else:
            self._forked[message["pid"]] = forked
            forked.start(message["pid"], descriptors[0])
        return True

    def _on_end(self, status: int) -> None:
        # What it has told before.
        while self._hear():
            pass
        asyncio.get_running_loop().remove_reader(self._channel)
        self._channel.close()
        stacks = read_stacks(self._stacks_file)
        if stacks:
            logger.error("%s, innermost calls first:\n%s", self, stacks)
        os.close(self._stacks_file)
        if not (self._is_retired and status == 0):
            how = f"killed by {signal.Signals(-status).name}" if status < 0 else f"status {status}"
            logger.error("%s ended: %s", self, how)
        self.ended.set()
        for forked in self._waiting:
            forked.end(status or 1)
        for forked in self._forked.values():
            forked.end_by_itself()


class Preloaders:
    """The process that forks those that serve, and its predecessors, which end after the processes they have forked.

    :param start_limit: see `Preloader`.
    """

    def __init__(self, start_limit: float) -> None:
        self._start_limit = start_limit
        # None until a process is wanted.
        self._current: Preloader | None = None
        self._all: set[Preloader] = set()

    def fork(self, inheritance: Inheritance, on_start: Callable[[int], None], on_end: Callable[[int], None]) -> Program:
        """See `Launch`."""
        if self._current is None or self._current.ended.is_set():
            self._current = Preloader(inheritance.run_directory, self._start_limit)
            self._all = {each for each in self._all if not each.ended.is_set()} | {self._current}
        return self._current.fork(inheritance, on_start, on_end)

    def begin_again(self) -> Preloader | None:
        """Import the application again for the next process; return what has imported it so far, for `settle`."""
        previous, self._current = self._current, None
        return previous

    def settle(self, previous: Preloader | None, *, has_begun: bool) -> None:
        """Let ``previous`` end if the new version has begun to serve; otherwise go back to it."""
        if not has_begun:
            previous, self._current = self._current, previous
        if previous is not None:
            previous.retire()

    def reopen_log_files(self) -> None:
        """Make all open their log files again."""
        for each in self._all:
            each.reopen_log_files()

    async def end(self, patience: float) -> None:
        """End all, whose processes have ended; kill those that need more than so many seconds."""
        await asyncio.gather(*(each.end(patience) for each in self._all))


class _Forked:
    """A process that a `Preloader` forks; see `Program`.

    :param kill_preloader: called for signals to a process that has not been forked yet.
    """

    def __init__(
        self,
        kill_preloader: Callable[[signal.Signals], None],
        on_start: Callable[[int], None],
        on_end: Callable[[int], None],
    ) -> None:
        self._kill_preloader = kill_preloader
        self._on_start = on_start
        self._on_end = on_end
        self._pidfd = -1
        # Came before it was forked.
        self._pending: signal.Signals | None = None

    def signal(self, number: signal.Signals) -> None:
        """See `Program`."""
        if self._pidfd < 0:
            # It may be importing the application, or about to fork.
            self._pending = number
            self._kill_preloader(number)
        else:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def start(self, pid: int, pidfd: int) -> None:
        """The process has been forked."""
        self._pidfd = pidfd
        self._on_start(pid)
        if self._pending is not None:
            self.signal(self._pending)

    def end(self, status: int) -> None:
        """The process has ended, or could not be forked."""
        if self._pidfd >= 0:
            os.close(self._pidfd)
        self._on_end(status)

    def end_by_itself(self) -> None:
        """Nobody waits for the process any more: notice its end; its status stays unknown."""
        loop = asyncio.get_running_loop()

        def on_end() -> None:
            loop.remove_reader(self._pidfd)
            self.end(1)

        loop.add_reader(self._pidfd, on_end)
