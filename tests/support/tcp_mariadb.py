"""A private MariaDB server that accepts TCP connections."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import MySQLdb

from tests.support.databases import connect_settings
from tests.support.inprocess import wait_until
from tests.support.processes import MARIADB_SCRIPT, private_mariadb


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@contextmanager
def tcp_mariadb(*options: str) -> Iterator[dict[str, Any]]:
    """A server on loopback that reports this address as its own; gives the arguments for ``MySQLdb.connect``."""
    with private_mariadb() as variables:
        directory = Path(variables["MYSQL_UNIX_SOCKET"]).parent
        subprocess.run([MARIADB_SCRIPT, "stop", directory], check=True)
        port = free_port()
        mariadbd = shutil.which("mariadbd", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
        with (directory / "mariadb.log").open("a") as log:
            server = subprocess.Popen(
                [
                    *(str(mariadbd), "--no-defaults", f"--datadir={directory}/data", f"--tmpdir={directory}/tmp"),
                    *(f"--socket={variables['MYSQL_UNIX_SOCKET']}", f"--pid-file={directory}/tcp.pid"),
                    *("--bind-address=127.0.0.1", f"--port={port}", "--report-host=127.0.0.1", "--skip-log-bin"),
                    *(["--user=root"] if os.geteuid() == 0 else []),
                    *options,
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            settings = connect_settings(variables)
            del settings["unix_socket"]
            settings |= {"host": "127.0.0.1", "port": port}

            def answers() -> bool:
                with suppress(MySQLdb.OperationalError), closing(MySQLdb.connect(**settings)) as connection:
                    # The same on all such servers, as a cluster has it.
                    connection.cursor().execute("SET PASSWORD = PASSWORD('the same')")
                    return True
                return False

            wait_until(answers, "the server answers", seconds=60)
            yield {**settings, "password": "the same"}
        finally:
            server.kill()
            server.wait()
