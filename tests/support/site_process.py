"""``python -m threadbridge`` as a process, with a small application whose requests wait as the test says."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path

from tests.support.inprocess import wait_until
from tests.support.processes import Frontend

# Every path but / takes the name of a file: /slow?FLAG makes FLAG.entered, and goes on when FLAG is there.
APPLICATION = """
import asyncio, ctypes, gc, os, threading, time
from threadbridge import current

def wait_for(flag):
    open(flag + ".entered", "w").close()
    while not os.path.exists(flag):
        time.sleep(0.01)

def stream(flag):
    yield b"begun"
    wait_for(flag)

def app(environ, start_response):
    path, flag = environ["PATH_INFO"], environ["QUERY_STRING"]
    if path == "/slow":
        wait_for(flag)
    elif path == "/cancellable":
        current().on_cancel(lambda: open(flag, "w").close())
        wait_for(flag)
    elif path == "/stuck-loop":
        [loop] = [found for found in gc.get_objects() if isinstance(found, asyncio.AbstractEventLoop)]
        loop.call_soon_threadsafe(wait_for, flag)
    elif path == "/hold-lock":
        # Until the process is killed, or for so many seconds.
        open(flag, "w").close()
        ctypes.PyDLL(None).sleep(int(os.path.basename(flag).rpartition("-")[2]))
    elif path == "/descriptors":
        # All that are left, until the test says so. A file that is there can be renamed without one.
        open(flag + ".begun", "w").close()
        held = []
        try:
            while True:
                held.append(os.open(os.devnull, os.O_RDONLY))
        except OSError:
            os.rename(flag + ".begun", flag + ".entered")
        while not os.path.exists(flag):
            time.sleep(0.01)
        for descriptor in held:
            os.close(descriptor)
    elif path == "/crash":
        os.abort()
    elif path == "/stream":
        start_response("200 OK", [("Content-Type", "text/plain")])
        return stream(flag)
    elif path == "/thread":
        threading.Thread(target=wait_for, args=(flag,), name="the-applications-own").start()
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{environ['wsgi.url_scheme']} {os.getpid()}".encode()]
"""


class Process(Frontend):
    """``python -m threadbridge`` with that application; ready when it has said so."""

    def __init__(
        self, directory: Path, *arguments: str, env: Mapping[str, str] | None = None, port: int | None = None
    ) -> None:
        (directory / "site_app.py").write_text(APPLICATION)
        command = ("-m", "threadbridge", "site_app:app", "--threads=2", *arguments)
        super().__init__(command, env=env, port=port, cwd=directory)

    def start(self) -> None:
        self.process = subprocess.Popen(
            self.command, env=self.env, cwd=self.cwd, stdout=self._output, stderr=subprocess.STDOUT
        )
        wait_until(lambda: "Serving on" in self.output() or self.process.poll() is not None, "ready", 30)
        assert self.process.poll() is None, self.output()

    def begin(self, target: str, method: str = "GET") -> socket.socket:
        """A connection of its own on which this has been asked."""
        return ask_on_its_own(self.port, target, method)

    def run_to_its_end(self) -> subprocess.CompletedProcess[str]:
        """For a process that cannot start: its status and what it says."""
        return subprocess.run(self.command, env=self.env, cwd=self.cwd, capture_output=True, text=True, timeout=30)


def entered(flag: Path) -> bool:
    return flag.with_name(flag.name + ".entered").exists()


def ask_on_its_own(port: int, target: str, method: str = "GET") -> socket.socket:
    """A connection of its own on which this has been asked."""
    client = socket.create_connection(("127.0.0.1", port), timeout=60)
    client.sendall(f"{method} {target} HTTP/1.0\r\nHost: a\r\n\r\n".encode())
    return client
