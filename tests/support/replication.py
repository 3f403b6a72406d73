"""Two private MariaDB servers: a primary, and a replica that follows it by GTID."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import MySQLdb

from tests.support.databases import connect_settings
from tests.support.inprocess import wait_until
from tests.support.processes import private_mariadb_files
from tests.support.tcp_mariadb import free_port

PRIMARY_ID, REPLICA_ID = 11, 22
PASSWORD = "only for the tests"
# It may change a server that is set to read only.
ADMINISTRATOR = {"user": "admin", "password": PASSWORD}
_ACCOUNTS = f"""
CREATE USER IF NOT EXISTS admin@localhost IDENTIFIED BY '{PASSWORD}';
GRANT ALL ON *.* TO admin@localhost;
"""


class Server:
    """One of the two: a process that can be ended and started again."""

    def __init__(self, directory: Path, variables: dict[str, str], number: int, port: int, init: str) -> None:
        self.settings = connect_settings(variables)
        self.port = port
        self.process: subprocess.Popen[bytes] | None = None
        self._directory = directory
        file = directory / "init.sql"
        file.write_text(init)
        mariadbd = shutil.which("mariadbd", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
        self._command = [
            *(str(mariadbd), "--no-defaults", f"--datadir={directory}/data", f"--tmpdir={directory}/tmp"),
            *(f"--socket={self.settings['unix_socket']}", f"--pid-file={directory}/server.pid"),
            *("--bind-address=127.0.0.1", f"--port={port}", f"--server-id={number}", f"--init-file={file}"),
            *("--log-bin=binlog", "--skip-slave-start", "--innodb-buffer-pool-size=64M", "--performance-schema=OFF"),
            *("--sync-binlog=0", "--innodb-flush-log-at-trx-commit=2", "--slave-net-timeout=5"),
            *(["--user=root"] if os.geteuid() == 0 else []),
        ]
        if number == REPLICA_ID:
            self._command.append("--read-only")

    def start(self) -> None:
        with (self._directory / "server.log").open("a") as log:
            self.process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        wait_until(self._answers, "the server answers", seconds=60)

    def _answers(self) -> bool:
        with suppress(MySQLdb.OperationalError):
            self.rows("SELECT 1")
            return True
        return False

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def rows(self, sql: str, *parameters: object) -> list[tuple[Any, ...]]:
        """What a statement of the administrator's gives."""
        with closing(self._connect()) as connection, connection.cursor() as cursor:
            cursor.execute(sql, parameters or None)
            return [*cursor.fetchall()]

    def _connect(self) -> Any:
        return MySQLdb.connect(autocommit=True, **{**self.settings, **ADMINISTRATOR})

    def count_of(self, part: str) -> int:
        """How many statements with this text run."""
        found = self.rows(
            "SELECT info FROM information_schema.processlist WHERE id <> CONNECTION_ID() AND command <> 'Sleep'"
        )
        return sum(part in (info or "") for (info,) in found)

    @contextmanager
    def holding(self, name: str) -> Iterator[None]:
        """A lock that is held, until `let_go` or to the end of the block: who asks for it waits."""
        with closing(self._connect()) as self._holder, self._holder.cursor() as cursor:
            cursor.execute("SELECT GET_LOCK(%s, 30)", [name])
            assert cursor.fetchall() == ((1,),)
            yield

    def let_go(self) -> None:
        with self._holder.cursor() as cursor:
            cursor.execute("DO RELEASE_ALL_LOCKS()")


@contextmanager
def replicated() -> Iterator[tuple[Server, Server]]:
    """A primary and a replica, which has the primary's data and is set to read only."""
    with ExitStack() as stack:
        files = [stack.enter_context(private_mariadb_files()) for _ in range(2)]
        ports = [free_port(), free_port()]
        follow = (
            f"{_ACCOUNTS}STOP SLAVE;\n"
            f"CHANGE MASTER TO master_host='127.0.0.1', master_port={ports[0]}, master_user='admin', "
            f"master_password='{PASSWORD}', master_use_gtid=slave_pos, master_connect_retry=1;\nSTART SLAVE;\n"
        )
        # Each has the accounts of its own: they are not replicated.
        local = "SET SESSION sql_log_bin = 0;\n"
        primary = Server(*files[0], PRIMARY_ID, ports[0], local + _ACCOUNTS)
        replica = Server(*files[1], REPLICA_ID, ports[1], local + follow)
        for server in (primary, replica):
            stack.callback(server.kill)
            server.start()
        yield primary, replica
