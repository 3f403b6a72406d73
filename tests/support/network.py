"""Hosts on this machine: network namespaces with addresses of their own, on a bridge. Only root may make them."""

from __future__ import annotations

import ipaddress
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

# Of what a slow host sends: a page takes some tenths of a second.
SLOW = "1mbit"


def run(*command: str | Path) -> None:
    """Run a command that must succeed."""
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)


def _try(*command: str) -> None:
    subprocess.run(command, check=False, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


class Network:
    """A bridge; this machine has the last address of the network, and others for clients.

    Everything is found by its name, so a network may outlive the process that made it.
    """

    def __init__(self, name: str, network: str, clients: int = 0) -> None:
        self.name = name
        self.network = ipaddress.ip_network(network)
        self.bridge = f"{name}-bridge"
        self.gateway = str(self.network[-2])
        # Addresses of this machine, for clients that are to be told apart.
        self.clients = [str(self.network[-3 - number]) for number in range(clients)]

    def address(self, number: int) -> str:
        """The address of a host."""
        return str(self.network[number])

    def make(self) -> None:
        """Make the bridge, if it is missing."""
        if not Path("/sys/class/net", self.bridge).exists():
            run("ip", "link", "add", self.bridge, "type", "bridge")
        for address in (self.gateway, *self.clients):
            run("ip", "addr", "replace", f"{address}/{self.network.prefixlen}", "dev", self.bridge)
        run("ip", "link", "set", self.bridge, "up")

    def remove(self) -> None:
        """Remove the bridge, if it is there."""
        _try("ip", "link", "del", self.bridge)


class Host:
    """A namespace of a network, and the processes in it."""

    def __init__(self, network: Network, name: str, number: int) -> None:
        self.name = name
        self.address = network.address(number)
        self.namespace = f"{network.name}-{name}"
        self._network = network
        # Its end outside the namespace.
        self._link = self.namespace

    @property
    def is_made(self) -> bool:
        return Path("/run/netns", self.namespace).exists() and Path("/sys/class/net", self._link).exists()

    def make(self) -> None:
        """Make the namespace, and its connection to the bridge, if they are not complete."""
        if not self.is_made:
            self.remove()
            run("ip", "netns", "add", self.namespace)
            run("ip", "link", "add", self._link, "type", "veth", "peer", "name", "eth0", "netns", self.namespace)
        prefix = self._network.network.prefixlen
        for command in (f"addr replace {self.address}/{prefix} dev eth0", "link set eth0 up", "link set lo up"):
            run("ip", "-n", self.namespace, *command.split())
        run("ip", "link", "set", self._link, "master", self._network.bridge, "up")

    def remove(self) -> None:
        """Kill what runs there, and remove it, as far as it is there."""
        self.kill()
        _try("ip", "link", "del", self._link)
        _try("ip", "netns", "del", self.namespace)

    def start(
        self, command: Sequence[str | Path], *, log: Path, directory: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        """Start a program that outlives this process; what it prints is added to ``log``."""
        with log.open("ab") as output:
            subprocess.run(
                # Its helpers belong to its session. It is in the namespace when this returns.
                ["ip", "netns", "exec", self.namespace, "setsid", "--fork", *command],
                cwd=directory,
                env={**os.environ, **(environment or {})},
                check=True,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    @property
    def processes(self) -> list[int]:
        """The ids of the processes that run there."""
        if not Path("/run/netns", self.namespace).exists():
            return []
        printed = subprocess.run(["ip", "netns", "pids", self.namespace], check=True, capture_output=True, text=True)
        return [int(number) for number in printed.stdout.split()]

    @property
    def first_processes(self) -> list[int]:
        """Those that no other process there has started: a server without its workers and helpers."""
        processes = self.processes
        return [number for number in processes if _parent(number) not in processes]

    def signal(self, number: signal.Signals, *processes: int) -> None:
        """Send a signal to these processes, or to all."""
        for process in processes or self.processes:
            with suppress(ProcessLookupError):
                os.kill(process, number)

    def kill(self) -> None:
        """End everything there with SIGKILL."""
        while self.processes:
            self.signal(signal.SIGKILL)
            time.sleep(0.01)

    def stop(self, seconds: float = 60) -> None:
        """End everything there in order; raises ``TimeoutError`` if that takes longer."""
        self.signal(signal.SIGTERM, *self.first_processes)
        give_up = time.monotonic() + seconds
        while self.processes:
            if time.monotonic() > give_up:
                raise TimeoutError(f"{self.name} has not ended within {seconds:g} s")
            time.sleep(0.02)

    def unplug(self) -> None:
        """Cut it off without closing anything."""
        run("ip", "link", "set", self._link, "down")

    def plug(self) -> None:
        """Undo `unplug`."""
        run("ip", "link", "set", self._link, "up")

    def slow_down(self) -> None:
        """Let it send only as much as a slow line carries."""
        shape = f"qdisc replace dev eth0 root tbf rate {SLOW} burst 16kbit latency 2s"
        run("tc", "-n", self.namespace, *shape.split())

    def speed_up(self) -> None:
        """Undo `slow_down`."""
        _try("tc", "-n", self.namespace, "qdisc", "del", "dev", "eth0", "root")


def _parent(process: int) -> int:
    with suppress(OSError):
        return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    return 0
