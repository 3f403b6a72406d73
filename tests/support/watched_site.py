"""A frontend with an operators' port, under an ordinary load, for Prometheus to watch."""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import MySQLdb
import requests

from tests.support.processes import MARIADB_SCRIPT, Frontend, free_port, private_mariadb
from tests.support.replication import Server, replicated

# How long a client waits between two requests, in seconds.
PAUSE = 0.05


class WatchedSite(Frontend):
    """``python -m threadbridge breakable:app``, whose source is a copy in this directory: a test may break it."""

    def __init__(
        self, directory: Path, mariadb: Mapping[str, str], *arguments: str, env: Mapping[str, str] | None = None
    ) -> None:
        self.directory = directory
        self.admin_port = free_port()
        self.source = directory / "breakable.py"
        self.source.write_text((Path(__file__).parent / "applications" / "breakable.py").read_text())
        self.mariadb = mariadb
        # What it may need besides, for a test to break.
        self.upstream: WatchedSite | None = None
        self.replica: Server | None = None
        ports = ("--port={port}", f"--admin_port={self.admin_port}")
        options = ("--pool=breakable:pool", *ports, "--access_log=false", *arguments)
        super().__init__(
            ("-m", "threadbridge", "breakable:app", *options), env={**mariadb, **(env or {})}, cwd=directory
        )
        self._certificate = directory / "site.pem"
        if self._certificate.exists():
            self.url = self.url.replace("http", "https")

    def start(self) -> None:
        super().start()
        # Now the server knows that these requests need the pool.
        for path in ("/short", "/sql?SELECT 1"):
            self.get(path)

    def get(self, target: str, timeout: float = 60) -> requests.Response:
        """Ask, as a proxy does that says when it got the request."""
        headers = {"X-Request-Start": f"t={time.time():.3f}", "Connection": "close"}
        url = f"{self.url}{quote(target, safe='/?')}"
        return requests.get(url, timeout=timeout, headers=headers, verify=str(self._certificate))

    def leave(self, target: str, seconds: float) -> None:
        """Ask, and leave without having been answered."""
        with suppress(requests.RequestException):
            self.get(target, timeout=seconds)

    def connect(self, head: str) -> socket.socket:
        """A connection on which this part of a request's head has been sent."""
        client = socket.socket()
        client.settimeout(60)
        # What its client does not read stays in the server.
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", self.port))
        if self._certificate.exists():
            client = ssl.create_default_context(cafile=str(self._certificate)).wrap_socket(
                client, server_hostname="127.0.0.1"
            )
        client.sendall(head.encode())
        return client

    @contextmanager
    def repeating(self, *actions: Callable[[], object], times: int = 1) -> Iterator[None]:
        """Do each of these again and again in that many threads of its own; what fails does not matter."""
        done = threading.Event()

        def repeat(action: Callable[[], object]) -> None:
            while not done.wait(PAUSE):
                with suppress(requests.RequestException, OSError, MySQLdb.Error):
                    action()

        threads = [threading.Thread(target=repeat, args=(action,)) for action in actions for _ in range(times)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            done.set()
            for thread in threads:
                thread.join()

    @contextmanager
    def under_load(self, *targets: str) -> Iterator[None]:
        """Under an ordinary load: two kinds of short requests, and these."""
        paths = ("/", "/short", *targets)

        def asks(path: str) -> Callable[[], object]:
            return lambda: self.get(path)

        with self.repeating(*map(asks, paths)):
            yield

    def set_database(self, order: str) -> None:
        """``start`` or ``stop`` its database."""
        subprocess.run([MARIADB_SCRIPT, order, Path(self.mariadb["MYSQL_UNIX_SOCKET"]).parent], check=True)

    def as_root(self, sql: str, *parameters: object) -> tuple[tuple[Any, ...], ...]:
        """What a statement of the database's administrator gives."""
        settings = {"unix_socket": self.mariadb["MYSQL_UNIX_SOCKET"], "user": "root", "autocommit": True}
        with closing(MySQLdb.connect(**settings)) as connection, connection.cursor() as cursor:
            cursor.execute(sql, parameters or None)
            return tuple(cursor.fetchall())


@contextmanager
def site(directory: Path, *arguments: str) -> Iterator[WatchedSite]:
    """A site with its own database."""
    with private_mariadb() as mariadb, WatchedSite(directory, mariadb, *arguments) as found:
        yield found


@contextmanager
def site_with_remote_lane(
    directory: Path, *arguments: str, env: Mapping[str, str] | None = None
) -> Iterator[WatchedSite]:
    """A site with a lane for /far/ whose requests another site runs."""
    with _upstream(directory) as upstream, site(directory, _far(upstream), *arguments) as found:
        found.upstream = upstream
        yield found


@contextmanager
def site_with_replica(directory: Path, *arguments: str) -> Iterator[WatchedSite]:
    """A site with a lane for /reports/ whose requests read from a replica of its database."""
    with replicated() as (primary, replica):
        (directory / "replica.json").write_text(json.dumps(replica.settings))
        (directory / "password").write_text(primary.settings["password"])
        mariadb = {
            "MYSQL_UNIX_SOCKET": primary.settings["unix_socket"],
            "MYSQL_USER": primary.settings["user"],
            "MYSQL_DATABASE": primary.settings["database"],
            "MYSQL_PASSWORD_FILE": str(directory / "password"),
        }
        lane = "--lane=reports:/reports/*:2:breakable:replica"
        env = {"REPLICA_SETTINGS": str(directory / "replica.json")}
        with WatchedSite(directory, mariadb, lane, *arguments, env=env) as found:
            found.replica = replica
            yield found


@contextmanager
def https_site(directory: Path, *arguments: str) -> Iterator[WatchedSite]:
    """A site that serves HTTPS."""
    make_certificate(directory)
    with site(directory, *HTTPS, *arguments) as found:
        yield found


@contextmanager
def site_with_everything(
    directory: Path, *arguments: str, env: Mapping[str, str] | None = None
) -> Iterator[WatchedSite]:
    """A site with HTTPS, two processes, a remote lane, a lane with a replica, and a lane of its own for /quick/."""
    with _upstream(directory) as upstream:
        make_certificate(directory)
        options = (*HTTPS, "--processes=2", _far(upstream), "--lane=quick-ones:/quick/*:2", *arguments)
        with site_with_replica(directory, *options) as found:
            found.upstream = upstream
            yield found


@contextmanager
def _upstream(directory: Path) -> Iterator[WatchedSite]:
    (directory / "upstream").mkdir()
    with site(directory / "upstream") as upstream:
        yield upstream


def _far(upstream: WatchedSite) -> str:
    return f"--lane=far:/far/*:{upstream.url}"


HTTPS = ("--certfile=site.pem", "--keyfile=site.key")


def make_certificate(directory: Path, days: int = 90) -> None:
    """A certificate for 127.0.0.1 that expires in so many days."""
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-noenc"),
            *("-days", f"{days}", "-subj", "/CN=tests", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", "site.key", "-out", "site.pem"),
        ],
        cwd=directory,
        check=True,
        capture_output=True,
    )
