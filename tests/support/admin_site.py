"""A frontend with an operators' port, for tests."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import quote

import requests

from tests.support.inprocess import wait_until
from tests.support.processes import Frontend, free_port
from tests.support.site_process import Process, entered

FROM_PAGE = {"X-Threadbridge": "test"}

# /sql?SELECT... runs the query; /stream does too, and then streams, holding its connection, until the client leaves.
# /report?kind=large takes 0.2 s in the database, and other kinds next to nothing.
# All other requests are answered at once.
SQL_APPLICATION = """
import os
import time
from urllib.parse import unquote
import MySQLdb
from dbutils.pooled_db import PooledDB

pool = PooledDB(
    MySQLdb, maxconnections=3, unix_socket=os.environ["MYSQL_UNIX_SOCKET"], user=os.environ["MYSQL_USER"],
    password=open(os.environ["MYSQL_PASSWORD_FILE"]).read(), database=os.environ["MYSQL_DATABASE"],
)

def run(connection, sql):
    cursor = connection.cursor()
    cursor.execute(unquote(sql))
    cursor.fetchall()

def stream(connection):
    try:
        while True:
            yield b"ok"
            time.sleep(0.1)
    finally:
        connection.close()

def app(environ, start_response):
    if environ["PATH_INFO"].startswith("/sql"):
        connection = pool.connection()
        run(connection, environ["QUERY_STRING"])
        connection.close()
    elif environ["PATH_INFO"] == "/report":
        connection = pool.connection()
        run(connection, "SELECT SLEEP(0.2)" if "kind=large" in environ["QUERY_STRING"] else "SELECT 1")
        connection.close()
    elif environ["PATH_INFO"] == "/stream":
        connection = pool.connection()
        run(connection, environ["QUERY_STRING"])
        start_response("200 OK", [("Content-Type", "text/plain")])
        return stream(connection)
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "2")])
    return [b"ok"]
"""


class Site(Process):
    """A frontend with an operators' port."""

    def __init__(self, directory: Path, *arguments: str, admin_port: int | None = 0) -> None:
        self.admin_port = free_port() if admin_port == 0 else admin_port
        self.directory = directory
        port = () if admin_port is None else (f"--admin_port={self.admin_port}",)
        super().__init__(directory, "--port={port}", *port, *arguments)

    def admin(self, path: str, method: str = "GET", **parameters: Any) -> requests.Response:
        """Send a request to the operators' port."""
        address = f"http://127.0.0.1:{self.admin_port}{path}"
        return requests.request(method, address, timeout=20, allow_redirects=False, **parameters)

    def document(self) -> dict[str, Any]:
        """The document that the operators' page shows."""
        found: dict[str, Any] = self.admin("/requests.json").json()
        return found

    def send(self, path: str, method: str = "GET") -> socket.socket:
        """Send a request, and return its connection."""
        client = socket.create_connection(("127.0.0.1", self.port), timeout=20)
        client.sendall(
            f"{method} {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode()
        )
        return client

    def occupy(self, stack: ExitStack, name: str, path: str = "/slow") -> socket.socket:
        """Send a request that runs until ``finish(name)``, and wait until it runs."""
        client = stack.enter_context(self.send(f"{path}?{self.directory / name}"))
        wait_until(lambda: entered(self.directory / name), f"{name} runs")
        return client

    def finish(self, *names: str) -> None:
        """Let these requests end."""
        for name in names:
            (self.directory / name).touch()


class SqlSite(Site):
    """A frontend that runs the SQL in its requests, with an operators' port."""

    def __init__(self, directory: Path, mariadb: dict[str, str], *arguments: str) -> None:
        self.directory = directory
        self.admin_port = free_port()
        (directory / "page_app.py").write_text(SQL_APPLICATION)
        ports = ("--port={port}", f"--admin_port={self.admin_port}")
        options = ("--pool=page_app:pool", *ports, *arguments)
        Frontend.__init__(self, ("-m", "threadbridge", "page_app:app", *options), env=mariadb, cwd=directory)

    @property
    def page(self) -> str:
        return f"http://127.0.0.1:{self.admin_port}/"

    def start(self) -> None:
        super().start()
        # Now the server knows that these requests need the pool.
        with self.send("/sql?SELECT%201") as client:
            assert b"200 OK" in answer(client)

    def teach(self) -> None:
        """Send enough requests that it learns which kind of report is slow."""
        with requests.Session() as session:
            for number in range(60):
                kind = "large" if number % 5 == 4 else "small"
                answered = session.get(f"{self.url}/report?kind={kind}&page={number}", timeout=20)
                assert answered.status_code == 200

    def run(self, stack: ExitStack, sql: str, path: str = "/sql") -> None:
        """Send a request that runs this SQL; its client leaves when the stack is closed."""
        stack.enter_context(self.send(f"{path}?{quote(sql)}"))


def answer(client: socket.socket) -> bytes:
    return b"".join(iter(lambda: client.recv(65536), b""))


def write_token(path: Path, token: str) -> None:
    """Write a token file that only its owner can read."""
    path.write_text(token)
    path.chmod(0o600)
