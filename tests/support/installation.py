"""A copy of the project that scripts/start.sh starts and stops."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import requests

from tests.support.processes import ROOT, free_port
from threadbridge.compiled import BUILD_DIRECTORY

# What start.sh asks of a frontend that it has started.
QUERY = "/query/?report=orders&customer=1&format=json"
# A proxy of the machine has no part in this.
HTTP = requests.Session()
HTTP.trust_env = False


class Installation:
    """A copy of the project that shares the virtual environment of these tests, so that nothing is to be set up."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        for name in ("myapplication", "threadbridge", "scripts"):
            shutil.copytree(ROOT / name, directory / name)
        for name in ("run.py", "setup.cfg", "constraints.txt"):
            shutil.copy(ROOT / name, directory)
        if BUILD_DIRECTORY.is_dir():
            shutil.copytree(BUILD_DIRECTORY, directory / BUILD_DIRECTORY.relative_to(ROOT))
        environment = directory / ".venv"
        environment.mkdir()
        for part in Path(sys.prefix).iterdir():
            (environment / part.name).symlink_to(part)
        (environment / "installed-application").unlink(missing_ok=True)
        (environment / "installed-application").write_text(
            f"{directory}\nPython {sys.version.split()[0]}\n"
            + (directory / "setup.cfg").read_text()
            + (directory / "constraints.txt").read_text()
        )
        # In the order in which the script goes through them.
        self.ports = sorted((free_port(), free_port()), key=str)
        kept = {name: value for name, value in os.environ.items() if not name.startswith("MYSQL_")}
        self.env = {**kept, "FRONTENDS": f"{self.ports[0]} {self.ports[1]}"}

    def popen(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            # dash is the strictest of the shells that /bin/sh may be.
            ["dash", self.directory / "scripts" / "start.sh", *arguments],
            env=self.env,
            # Not the project's directory: the script must find that by itself.
            cwd="/",
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # A process group of its own, as a terminal gives it, and sends it Ctrl-C.
            start_new_session=True,
        )

    def run(self, *arguments: str, status: int = 0) -> str:
        """Run the script, with output to a pipe that what it starts must not hold open, and give its output."""
        with self.popen(*arguments) as process:
            output, _ = process.communicate(timeout=180)
        if process.returncode != status:
            logs = [f"{path.name}:\n{path.read_text()}" for path in sorted(self.directory.glob("logs/*.log"))]
            raise AssertionError("\n".join([output, *logs]))
        return output

    def url(self, port: int) -> str:
        return f"http://127.0.0.1:{port}"

    def statuses(self, path: str) -> list[int]:
        return [HTTP.get(self.url(port) + path, timeout=30).status_code for port in self.ports]

    def pid(self, port: int) -> int:
        return int((self.directory / "var" / "run" / f"frontend.{port}.pid").read_text())

    def pids(self) -> list[int]:
        return [self.pid(port) for port in self.ports]

    def processes(self) -> list[str]:
        """The command lines that name the directory: of this installation's servers, while there are any."""
        found = []
        for entry in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                command_line = entry.read_bytes().replace(b"\0", b" ").decode()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if str(self.directory) in command_line:
                found.append(command_line)
        return found

    def assert_nothing_remains(self) -> None:
        assert self.processes() == []
        assert list((self.directory / "var" / "run").glob("*.pid")) == []


@contextmanager
def installed() -> Iterator[Installation]:
    """An installation that is stopped, and gone, after the block."""
    # Not pytest's own directory: the path of a Unix socket may have only 107 bytes.
    directory = Path(tempfile.mkdtemp(prefix="start-")).resolve()
    # Unprivileged users must be able to read it.
    directory.chmod(0o755)
    made = Installation(directory)
    try:
        yield made
    finally:
        made.env["STOP_GRACE"] = "5"
        made.run("stop")
        made.assert_nothing_remains()
        shutil.rmtree(directory)
