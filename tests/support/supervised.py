"""A supervisor with two processes, for tests: ``python -m threadbridge --processes=2``."""

from __future__ import annotations

import http.client
import socket
import sys
from collections.abc import Callable, Mapping, Set
from pathlib import Path

from tests.support.inprocess import wait_until
from tests.support.site_process import Process

# As `python -m threadbridge`, after other lines.
PROGRAM = """
import sys
from threadbridge.cli import main as command_line
{}
sys.argv[0] = "program"
sys.exit(command_line.main())
"""


class Supervised(Process):
    """Serves the small application of `tests.support.site_process` with two processes; ready when it has said so.

    ``constants`` replace those of `threadbridge.process.supervisor` and `threadbridge.process.renewal`.
    """

    def __init__(
        self,
        directory: Path,
        *arguments: str,
        env: Mapping[str, str] | None = None,
        port: int | None = None,
        **constants: object,
    ) -> None:
        super().__init__(directory, "--port={port}", "--processes=2", *arguments, env=env, port=port)
        if constants:
            lines = ["from threadbridge.process import renewal, supervisor", "for module in (renewal, supervisor):"]
            lines.append(f"    vars(module).update({constants!r})")
            (directory / "program.py").write_text(PROGRAM.format("\n".join(lines)))
            self.command = [sys.executable, "program.py", *self.command[3:]]

    def pids(self) -> set[int]:
        """The processes that the supervisor has now."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return {int(pid) for pid in children.split()}

    def wait_for_both(self, without: Set[int] = frozenset()) -> Set[int]:
        """Return as soon as two processes answer that are not these; gives their pids."""
        seen: set[int] = set()

        def both() -> bool:
            seen.add(self.ask())
            return len(seen - without) == 2

        wait_until(both, f"two processes other than {without} answer", 30)
        return seen - without

    def ask(self, target: str = "/") -> int:
        """Ask on a connection of its own; the pid of the process that answers."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request("GET", target)
            return pid_of(connection.getresponse().read())
        finally:
            connection.close()


def finish(client: socket.socket) -> int:
    """The pid of the process that answers what `Supervised.begin` has asked; 0 if the connection is cut."""
    with client:
        received = b"".join(iter(lambda: client.recv(65536), b""))
    return pid_of(received) if received else 0


def pid_of(answer: bytes) -> int:
    """The pid that the application answers with."""
    return int(answer.split()[-1])


def is_gone(pid: int) -> bool:
    """Whether the process has ended, and at most is still to be waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


def said(server: Process, *words: str) -> Callable[[], bool]:
    """Whether a line with all these words is in the server's output."""
    return lambda: any(all(word in line for word in words) for line in server.output().splitlines())
