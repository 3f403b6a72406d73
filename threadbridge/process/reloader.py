"""Starts the process again when the application's files change: the same process, with the same listening sockets.

`os.execve` replaces the program and keeps the process: its number, its terminal and standard input, for `pdb`, and the
debugger of an editor, which follows it. Clients that connect meanwhile wait in the kernel.
"""

from __future__ import annotations

import atexit
import importlib.util
import json
import logging
import os
import socket
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, NoReturn

from threadbridge.common import forks
from threadbridge.common.threads import NOT_STARTED
from threadbridge.process import logs
from threadbridge.process.watched_files import WatchedFiles, wait_for_changes

logger = logging.getLogger("threadbridge")

# From a process to itself: the numbers of the listening sockets.
VARIABLE = "THREADBRIDGE_RELOAD"
# Seconds that the functions registered with `atexit` may take.
END_TIME = 1.0


class Reloader:
    """Watches the files from now on, and keeps the listening sockets. Make it before the application is imported.

    :param include: see `WatchedFiles`.
    :param environment: the variables with which the process shall start again.
    """

    def __init__(self, include: Sequence[str], environment: Mapping[str, str]) -> None:
        self._environment = {name: text for name, text in environment.items() if name != VARIABLE}
        self._directory = os.getcwd()
        # The names of the files that changed, once; not set if the process ends before that.
        self.changed: Future[list[str]] = Future()
        # What the process had before it was replaced.
        kept = json.loads(os.environ.pop(VARIABLE, "{}"))
        self.listeners = _sockets(kept.get("listeners", ()))
        self.admin_listeners = _sockets(kept.get("admin_listeners", ()))
        self._kept: dict[str, list[socket.socket]] = {}
        self._terminal = _Terminal()
        self._stop = threading.Event()
        # Called last, since it is registered first: what a debugger has registered before must not run.
        atexit.register(self._replace_if_due)
        self._is_due = False
        self._files = WatchedFiles(include)
        threading.Thread(target=self._watch, name="threadbridge-reload", daemon=True).start()

    def _watch(self) -> None:
        try:
            changed = wait_for_changes(self._files, self._stop)
        except Exception:
            logger.exception("reload: the files are no longer watched")
            return
        for path in changed:
            # Python would take it for that of the changed source if both are of the same second and size.
            with suppress(OSError, ValueError):
                os.unlink(importlib.util.cache_from_source(path))
        # It is cancelled when the process ends.
        if changed and self.changed.set_running_or_notify_cancel():
            self.changed.set_result([os.path.relpath(path, self._directory) for path in changed])

    def keep(self, listeners: Sequence[socket.socket], admin_listeners: Sequence[socket.socket]) -> None:
        """Keep these sockets listening until the process is replaced or `release` is called."""
        self._kept = {"listeners": _copies(listeners), "admin_listeners": _copies(admin_listeners)}

    def release(self) -> None:
        """Let the sockets close: the process is about to end."""
        self._stop.set()
        for listener in (*self._kept.get("listeners", ()), *self._kept.get("admin_listeners", ())):
            listener.close()
        self._kept.clear()

    def replace(self) -> NoReturn:
        """Start the process again, after what the application has registered with `atexit`. Main thread."""
        self._is_due = True
        self._terminal.restore()
        guard = threading.Timer(END_TIME, self._replace_if_due)
        guard.daemon = True
        with suppress(*NOT_STARTED):
            guard.start()
        # Not by leaving the interpreter: it would wait for threads that are still at work, and `pdb` would hold it up.
        atexit._run_exitfuncs()
        raise AssertionError("the last of these functions replaces the process")

    def _replace_if_due(self) -> None:
        if not self._is_due:
            return
        logging.shutdown()
        for _, handler in logs.installed:
            # A call of `logging.config` has made `logging.shutdown` forget it.
            handler.flush()
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        _close_others_at_exec()
        numbers = {name: [each.fileno() for each in sockets] for name, sockets in self._kept.items()}
        for number in (number for each in numbers.values() for number in each):
            os.set_inheritable(number, True)
        os.chdir(self._directory)
        arguments = [sys.executable, *_arguments()]
        os.execve(sys.executable, arguments, {**self._environment, VARIABLE: json.dumps(numbers)})


class _Terminal:
    """The terminal's mode when the process began: `pdb` may be reading a line, in a mode of its own, as it ends."""

    def __init__(self) -> None:
        self._mode: Any = None
        with suppress(Exception):
            import termios

            self._mode = termios.tcgetattr(0)

    def restore(self) -> None:
        if self._mode is not None:
            import signal
            import termios

            # Changing the terminal from the background would stop the process.
            before = signal.signal(signal.SIGTTOU, signal.SIG_IGN)
            with suppress(termios.error):
                termios.tcsetattr(0, termios.TCSANOW, self._mode)
            signal.signal(signal.SIGTTOU, before)


def _arguments() -> list[str]:
    """The command line after the interpreter's name."""
    if "pydevd" in sys.modules:
        # It changes the command line, so that the new program is debugged in the same session.
        return ["-m", "threadbridge", *sys.argv[1:]]
    return sys.orig_argv[1:]


def _sockets(numbers: Sequence[int]) -> list[socket.socket]:
    found = []
    for number in numbers:
        # Programs that the application starts do not inherit it.
        os.set_inheritable(number, False)
        found.append(socket.socket(fileno=number))
        found[-1].setblocking(False)
    return found


def _copies(listeners: Sequence[socket.socket]) -> list[socket.socket]:
    copies = [listener.dup() for listener in listeners]
    for copy in copies:
        forks.listens(copy)
    return copies


def _close_others_at_exec() -> None:
    # Python's own are closed anyway, but not those of libraries, such as connections to the database.
    for name in os.listdir("/dev/fd"):
        if int(name) > 2:
            with suppress(OSError):
                os.set_inheritable(int(name), False)
