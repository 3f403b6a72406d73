"""A private PostgreSQL server, and a witness of what is executed there."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psycopg

COUNTED_SLEEP = "SELECT nextval('executions'), pg_sleep(20)"


def programs() -> Path:
    """Debian does not put the server's programs, of which there may be several versions, on the PATH."""
    found = shutil.which("initdb")
    return Path(found).resolve().parent if found else max(Path("/usr/lib/postgresql").glob("*/bin/initdb")).parent


@contextlib.contextmanager
def private_postgresql(port: int | None = None) -> Iterator[dict[str, str]]:
    """A private server; gives the ``PG*`` variables that lead to it. With a port, it listens there on loopback, too."""
    with _running("initdb", "--username=test", "--auth=trust", "--no-sync", port=port) as directory:
        # Without TLS: with both drivers' own libraries, threads that initialise it at the same time crash.
        yield {
            "PGHOST": str(directory),
            "PGUSER": "test",
            "PGDATABASE": "postgres",
            "PGSSLMODE": "disable",
            "PGGSSENCMODE": "disable",
            **({} if port is None else {"PGPORT": str(port)}),
        }


@contextlib.contextmanager
def private_standby(primary: dict[str, str]) -> Iterator[dict[str, str]]:
    """A hot standby of such a server, on a Unix socket; gives the variables that lead to it."""
    with _running("pg_basebackup", "--write-recovery-conf", "--no-sync", "--checkpoint=fast", env=primary) as directory:
        yield {**primary, "PGHOST": str(directory)}


@contextlib.contextmanager
def _running(
    program: str, *arguments: str, port: int | None = None, env: Mapping[str, str] | None = None
) -> Iterator[Path]:
    """A server whose files this program makes; gives the directory of its Unix socket."""
    directory = Path(tempfile.mkdtemp(prefix="postgresql-"))
    # The server refuses to run as root.
    as_user: dict[str, Any] = {}
    if os.geteuid() == 0:
        user = pwd.getpwnam("nobody")
        os.chown(directory, user.pw_uid, user.pw_gid)
        as_user = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}

    def run(program: str, *arguments: str) -> None:
        subprocess.run(
            [programs() / program, "--pgdata", directory / "data", *arguments],
            check=True,
            cwd=directory,
            env={**os.environ, **(env or {})},
            stdout=subprocess.DEVNULL,
            **as_user,
        )

    run(program, *arguments)
    listen = "-c listen_addresses=" if port is None else f"-c listen_addresses=127.0.0.1 -p {port}"
    run("pg_ctl", "start", "--wait", f"--log={directory}/log", f"--options=-k {directory} {listen}")
    try:
        yield directory
    finally:
        run("pg_ctl", "stop", "--mode=immediate")
        shutil.rmtree(directory)


class Witness:
    """A connection besides those of the pool under test."""

    def __init__(self) -> None:
        self.connection = psycopg.connect(autocommit=True)
        # What an earlier test left behind.
        self.connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE state <> 'idle' AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
        )
        self.connection.execute("CREATE SEQUENCE IF NOT EXISTS executions")
        self.connection.execute("CREATE TABLE IF NOT EXISTS notes (note text)")
        self.connection.execute("TRUNCATE notes")
        self._executions = self._next_value

    @property
    def _next_value(self) -> int:
        [(value,)] = self.connection.execute("SELECT nextval('executions')").fetchall()
        return int(value)

    @property
    def executions(self) -> int:
        """How often ``nextval('executions')`` was executed since the last call."""
        before, self._executions = self._executions, self._next_value
        return self._executions - before - 1

    @property
    def running(self) -> list[str]:
        """The statements that are running now, except the witness's own."""
        sql = (
            "SELECT query FROM pg_stat_activity "
            "WHERE state = 'active' AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
        )
        return [query for (query,) in self.connection.execute(sql)]

    @property
    def sleeping(self) -> list[str]:
        """The statements that have come to their ``pg_sleep``."""
        sql = "SELECT query FROM pg_stat_activity WHERE state = 'active' AND wait_event = 'PgSleep'"
        return [query for (query,) in self.connection.execute(sql)]
