"""A PgBouncer in front of a private PostgreSQL server."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg

from tests.support.inprocess import wait_until


@contextmanager
def pgbouncer(server: Mapping[str, str], mode: str, size: int) -> Iterator[dict[str, Any]]:
    """Relays in a ``pool_mode``, over so many connections to the server; gives arguments for ``connect``."""
    program = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    directory = Path(tempfile.mkdtemp(prefix="pgbouncer-"))
    (directory / "users").write_text('"test" ""\n')
    (directory / "pgbouncer.ini").write_text(f"""
[databases]
postgres = host={server["PGHOST"]} dbname=postgres user=test
[pgbouncer]
unix_socket_dir = {directory}
listen_addr =
auth_type = trust
auth_file = {directory}/users
pool_mode = {mode}
default_pool_size = {size}
logfile = {directory}/log
ignore_startup_parameters = extra_float_digits
""")
    as_user: dict[str, Any] = {}
    if os.geteuid() == 0:
        # It refuses to run as root.
        user = pwd.getpwnam("nobody")
        os.chown(directory, user.pw_uid, user.pw_gid)
        as_user = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    process = subprocess.Popen([str(program), "-q", directory / "pgbouncer.ini"], stdin=subprocess.DEVNULL, **as_user)
    settings: dict[str, Any] = {
        "host": str(directory),
        "port": 6432,
        "user": "test",
        "dbname": "postgres",
        "sslmode": "disable",
    }
    try:

        def answers() -> bool:
            with suppress(psycopg.OperationalError):
                psycopg.connect(**settings).close()
                return True
            return False

        wait_until(answers, "PgBouncer answers")
        yield settings
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(directory)
