"""Servers as real processes, for tests and benchmarks: started, waited for, stopped."""

from __future__ import annotations

import fcntl
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

ROOT = Path(__file__).resolve().parents[2]

MARIADB_SCRIPT = ROOT / "scripts" / "mariadb.sh"


# The environment variable that names the directory in which a run of the tests keeps its templates; see conftest.py.
TEMPLATES = "MARIADB_TEMPLATES"


def nothing(variables: dict[str, str]) -> None:
    """Leave the database empty."""


@contextmanager
def private_mariadb(fill: Callable[[dict[str, str]], None] = nothing) -> Iterator[dict[str, str]]:
    """A server with what ``fill`` puts there, gone after the block; gives the ``MYSQL_*`` variables that lead to it."""
    # The path of a Unix socket may have only 107 bytes.
    directory = Path(tempfile.mkdtemp(prefix="mariadb-"))
    try:
        if TEMPLATES in os.environ:
            _begin_with_template(directory, nothing)
            if fill is not nothing:
                _begin_with_template(directory, fill)
            yield _start_mariadb(directory)
        else:
            variables = _start_mariadb(directory)
            fill(variables)
            yield variables
    finally:
        subprocess.run([MARIADB_SCRIPT, "stop", directory], check=True)
        shutil.rmtree(directory)


@contextmanager
def private_mariadb_files() -> Iterator[tuple[Path, dict[str, str]]]:
    """The files of such a server that has been stopped, and the variables that lead to it once it is started."""
    directory = Path(tempfile.mkdtemp(prefix="mariadb-"))
    try:
        if TEMPLATES in os.environ:
            _begin_with_template(directory, nothing)
        else:
            _start_mariadb(directory)
        subprocess.run([MARIADB_SCRIPT, "stop", directory], check=True)
        yield directory, _variables(directory)
    finally:
        shutil.rmtree(directory)


def _start_mariadb(directory: Path) -> dict[str, str]:
    subprocess.run([MARIADB_SCRIPT, "start", directory], check=True)
    return _variables(directory)


def _variables(directory: Path) -> dict[str, str]:
    printed = subprocess.run([MARIADB_SCRIPT, "env", directory], check=True, capture_output=True, text=True).stdout
    return dict(line.split("=", 1) for line in printed.splitlines())


def _begin_with_template(directory: Path, fill: Callable[[dict[str, str]], None]) -> None:
    """Copy the files of a server that was filled so; the first who needs them makes them, for all workers.

    To make them takes ten times as long as to copy them, and much of the processors' time.
    """
    with _locked_template(fill) as template:
        if not template.exists():
            fill(_start_mariadb(directory))
            subprocess.run([MARIADB_SCRIPT, "stop", directory], check=True)
            _keep(directory, template)
            return
    shutil.copytree(template, directory, dirs_exist_ok=True)


@contextmanager
def becomes_template(directory: Path, fill: Callable[[dict[str, str]], None]) -> Iterator[None]:
    """The block makes a server there, fills it in its own way, and stops it: the others need not do that again."""
    with _locked_template(fill) as template:
        yield
        if not template.exists():
            _keep(directory, template)


@contextmanager
def _locked_template(fill: Callable[[dict[str, str]], None]) -> Iterator[Path]:
    template = Path(os.environ[TEMPLATES], fill.__name__)
    with template.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield template


def _keep(directory: Path, template: Path) -> None:
    # Renamed when it is complete: somebody may interrupt this.
    unfinished = template.with_suffix(".new")
    shutil.copytree(directory, unfinished)
    unfinished.rename(template)


# Below those that the kernel gives to clients.
PORTS = range(20_000, 32_000)
_ports = iter(random.SystemRandom().sample(PORTS, len(PORTS)))
# A port belongs to the process that has locked the byte of its number, until that ends: other workers of pytest, and
# whatever else runs the tests or the benchmarks at the same time, get others.
_claims = os.open(f"/tmp/threadbridge-test-ports-{os.getuid()}", os.O_RDWR | os.O_CREAT, 0o600)


def free_port() -> int:
    """A TCP port of the loopback interface on which nobody listens, and which nobody else gets from here."""
    for port in _ports:
        with suppress(OSError), socket.socket() as probe:
            fcntl.lockf(_claims, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
            probe.bind(("127.0.0.1", port))
            return port
    raise RuntimeError(f"none of the ports in {PORTS} is free")


class Frontend:
    """A server process; as a context manager it is ready inside the block and gone after it.

    ``arguments`` are what stands behind ``python`` on its command line, with ``{port}`` in place of the port.
    """

    # Seconds that it may take to start.
    patience = 30.0

    def __init__(
        self,
        arguments: Sequence[str] = ("run.py", "--port={port}"),
        *,
        env: Mapping[str, str] | None = None,
        port: int | None = None,
        cwd: Path = ROOT,
        python: str | Path = sys.executable,
    ) -> None:
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.command = [str(python), *(part.format(port=self.port) for part in arguments)]
        # Of its own: it must not know what others in the same directory have learned. Some run as other users.
        self._temporary = tempfile.mkdtemp(prefix="f")
        os.chmod(self._temporary, 0o1777)
        own = {"PYTHONUNBUFFERED": "1", "PYTHONPATH": str(ROOT), "TMPDIR": self._temporary}
        self.env = {**os.environ, **own, **(env or {})}
        self.cwd = cwd
        self.process: subprocess.Popen[bytes]
        # A file and no pipe: a pipe that nobody empties would block the server.
        self._output = os.memfd_create("output")

    def __enter__(self) -> Self:
        self.start()
        return self

    def start(self) -> None:
        """Start the process and wait until its port accepts a connection."""
        self.process = subprocess.Popen(
            self.command, env=self.env, cwd=self.cwd, stdout=self._output, stderr=subprocess.STDOUT
        )
        deadline = time.monotonic() + self.patience
        while True:
            if self.process.poll() is not None:
                raise RuntimeError(f"{self.command} ended with {self.process.returncode}:\n{self.output()}")
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=5).close()
                return
            except ConnectionRefusedError:
                if time.monotonic() > deadline:
                    self.process.kill()
                    raise RuntimeError(
                        f"{self.command} did not listen within {self.patience:g} s:\n{self.output()}"
                    ) from None
                time.sleep(0.02)

    def stop(self, signal_number: int = signal.SIGTERM, timeout: float = 60) -> int:
        """Send the signal, wait for the end and give the exit status."""
        self.process.send_signal(signal_number)
        return self.process.wait(timeout)

    def output(self) -> str:
        """What the process has written so far to its standard output and standard error."""
        return os.pread(self._output, os.fstat(self._output).st_size, 0).decode()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._output)
        shutil.rmtree(self._temporary, ignore_errors=True)
