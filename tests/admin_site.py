"""A frontend with an operators' port, for tests."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import requests

from tests.inprocess import wait_until
from tests.processes import free_port
from tests.site_process import Process, entered

FROM_PAGE = {"X-Threadbridge": "test"}


class Site(Process):
    """A frontend with an operators' port."""

    def __init__(self, directory: Path, *arguments: str, admin_port: int | None = 0) -> None:
        self.admin_port = free_port() if admin_port == 0 else admin_port
        self.directory = directory
        port = () if admin_port is None else (f"--admin_port={self.admin_port}",)
        super().__init__(directory, "--port={port}", *port, *arguments)

    def admin(self, path: str, method: str = "GET", **parameters: Any) -> requests.Response:
        """Ask the operators' port."""
        address = f"http://127.0.0.1:{self.admin_port}{path}"
        return requests.request(method, address, timeout=20, allow_redirects=False, **parameters)

    def picture(self) -> dict[str, Any]:
        """What it shows."""
        found: dict[str, Any] = self.admin("/requests.json").json()
        return found

    def send(self, path: str, method: str = "GET") -> socket.socket:
        """A connection on which this request has been sent."""
        client = socket.create_connection(("127.0.0.1", self.port), timeout=20)
        client.sendall(
            f"{method} {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode()
        )
        return client

    def occupy(self, stack: ExitStack, name: str, path: str = "/slow") -> socket.socket:
        """A request that runs until ``finish(name)``."""
        client = stack.enter_context(self.send(f"{path}?{self.directory / name}"))
        wait_until(lambda: entered(self.directory / name), f"{name} runs")
        return client

    def finish(self, *names: str) -> None:
        """Let these requests go on."""
        for name in names:
            (self.directory / name).touch()


def answer(client: socket.socket) -> bytes:
    return b"".join(iter(lambda: client.recv(65536), b""))
