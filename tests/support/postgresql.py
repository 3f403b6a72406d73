"""A private PostgreSQL server, and a witness of what is executed there."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg

COUNTED_SLEEP = "SELECT nextval('executions'), pg_sleep(20)"


def programs() -> Path:
    """Debian does not put the server's programs, of which there may be several versions, on the PATH."""
    found = shutil.which("initdb")
    return Path(found).parent if found else max(Path("/usr/lib/postgresql").glob("*/bin/initdb")).parent


@contextlib.contextmanager
def private_postgresql() -> Iterator[dict[str, str]]:
    """A private server; gives the ``PG*`` variables that lead to it."""
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
            stdout=subprocess.DEVNULL,
            **as_user,
        )

    run("initdb", "--username=test", "--auth=trust", "--no-sync")
    run("pg_ctl", "start", "--wait", f"--log={directory}/log", f"--options=-k {directory} -c listen_addresses=")
    try:
        # Without TLS: with both drivers' own libraries, threads that initialise it at the same time crash.
        yield {
            "PGHOST": str(directory),
            "PGUSER": "test",
            "PGDATABASE": "postgres",
            "PGSSLMODE": "disable",
            "PGGSSENCMODE": "disable",
        }
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
