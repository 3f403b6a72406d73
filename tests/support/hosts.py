"""Frontends as separate hosts: each with its own host name, loopback address and run directory."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.support.admin_site import SQL_APPLICATION, Site, write_token
from tests.support.processes import Frontend
from tests.support.supervised import PROGRAM

TOKEN = "a token that all of them have"
BEARER = {"Authorization": f"Bearer {TOKEN}"}


class Host(Site):
    """A host: its operators' port is at its own address, and all hosts have the same port number there.

    :param number: the last number of its address, ``127.0.0.N``.
    :param scheme: ``https`` if the arguments give it a certificate.
    :param names: lines of ``/etc/hosts``, in a file that can be changed; read when a name is looked up.
    :param lines: of a program that run before the command line does.
    """

    def __init__(
        self,
        directory: Path,
        number: int,
        admin_port: int,
        *arguments: str,
        scheme: str = "http",
        names: Path | None = None,
        lines: Sequence[str] = (),
        mariadb: dict[str, str] | None = None,
    ) -> None:
        self.name, self.address, self.scheme = f"web{number}", f"127.0.0.{number}", scheme
        home = directory / self.name
        home.mkdir()
        write_token(home / "token", TOKEN)
        run = f"--run_directory={home / 'run'}"
        given = (run, f"--admin_address={self.address}", f"--admin_token_file={home / 'token'}", *arguments)
        super().__init__(home, *given, admin_port=admin_port)
        if mariadb is not None:
            (home / "page_app.py").write_text(SQL_APPLICATION)
            port = ("--port={port}", f"--admin_port={admin_port}")
            Frontend.__init__(
                self,
                ("-m", "threadbridge", "page_app:app", "--pool=page_app:pool", *port, *given),
                env=mariadb,
                cwd=home,
            )
        if lines:
            (home / "program.py").write_text(PROGRAM.format("\n".join(lines)))
            self.command = [sys.executable, "program.py", *self.command[3:]]
        hosts = f"mount --bind {names} /etc/hosts && " if names is not None else ""
        self.command = [*NAMESPACES, f'hostname {self.name} && {hosts}exec "$@"', "sh", *self.command]

    def start(self) -> None:
        # Monotonic.
        self.began = time.monotonic()
        super().start()

    @property
    def page(self) -> str:
        return f"{self.scheme}://{self.address}:{self.admin_port}/"

    def admin(self, path: str, method: str = "GET", **parameters: Any) -> requests.Response:
        headers = {**BEARER, **parameters.pop("headers", {})}
        address = self.page.rstrip("/") + path
        return requests.request(method, address, timeout=20, allow_redirects=False, headers=headers, **parameters)


NAMESPACES = ("unshare", "--uts", "--mount", "--propagation=private", "sh", "-c")


def skip_without_namespaces() -> None:
    """Skip the test where host names and mounts of its own need a right that this user lacks."""
    try:
        subprocess.run([*NAMESPACES, "hostname web0"], check=True, capture_output=True, text=True)
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no host names of their own for processes: {error}")


class Authority:
    """A certificate authority, made with ``openssl``."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self.directory = directory
        self.certificate = directory / "ca.pem"
        self._openssl(
            "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
            "-subj", "/CN=authority", "-addext", "keyUsage=critical,keyCertSign,cRLSign",
            "-keyout", "ca.key", "-out", "ca.pem",
        )  # fmt: skip

    def sign(self, name: str, *subjects: str) -> tuple[Path, Path]:
        """Make a certificate for these subjects, such as ``IP:127.0.0.2``; return its file and its key's."""
        self._openssl(
            "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
            "-subj", f"/CN={name}", "-addext", f"subjectAltName={','.join(subjects)}",
            "-CA", "ca.pem", "-CAkey", "ca.key", "-keyout", f"{name}.key", "-out", f"{name}.pem",
        )  # fmt: skip
        return self.directory / f"{name}.pem", self.directory / f"{name}.key"

    def _openssl(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=self.directory, check=True, capture_output=True)
