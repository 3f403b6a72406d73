"""``--check``: provokes each of its findings about a database, on a real one."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import MySQLdb
import pytest

from tests.support import unknown_driver
from tests.support.databases import connect_settings, kill_server, line_to, start_server
from tests.support.doctor_report import MYSQL, NO_DATABASE, SITE, Report, check, run_check
from tests.support.processes import MARIADB_SCRIPT, private_mariadb

ADMINISTRATOR = {"user": "administrator", "password": "not a secret"}
LIMITED = {"MYSQL_USER": "limited", "MYSQL_PASSWORD_FILE": "", "MYSQL_PASSWORD": "limited-password"}


# Pools that connect to a database in different ways.
POOLS = (
    SITE
    + """
import importlib, itertools, os
import MySQLdb
from dbutils.pooled_db import PooledDB

with open(os.environ["MYSQL_PASSWORD_FILE"]) as file:
    settings = {
        "user": os.environ["MYSQL_USER"],
        "password": file.read(),
        "database": os.environ["MYSQL_DATABASE"],
        "unix_socket": os.environ["MYSQL_UNIX_SOCKET"],
    }
early = PooledDB(MySQLdb, maxconnections=2, init_command="SET timestamp = UNIX_TIMESTAMP() + 3600", **settings)
late = PooledDB(MySQLdb, maxconnections=2, init_command="SET timestamp = UNIX_TIMESTAMP() - 3600", **settings)
sqlite = PooledDB(__import__("sqlite3"), maxconnections=2, database=":memory:")
absent = PooledDB(__import__("sqlite3"), maxconnections=2, database="/nowhere/at-all")
unknown = PooledDB(__import__("unknown_driver"), maxconnections=2, database=":memory:")
pymysql, connector, mariadb = (
    PooledDB(importlib.import_module(name), maxconnections=2, **settings)
    for name in ("pymysql", "mysql.connector", "mariadb")
)
unlimited = PooledDB(MySQLdb, **settings)

numbers = itertools.count()

def connect(**arguments):
    if next(numbers) % 2 and "OTHER_SERVER" in os.environ:
        name, password = os.environ["OTHER_SERVER"].split()
        with open(password) as file:
            arguments |= {"unix_socket": name, "password": file.read()}
    return MySQLdb.connect(**arguments)

balanced = PooledDB(connect, maxconnections=2, **settings)
several = [
    PooledDB(MySQLdb, maxconnections=7, **settings),
    sqlite,
    PooledDB(MySQLdb, maxconnections=3, **{**settings, "database": "information_schema"}),
]
"""
)


def check_pool(directory: Path, env: dict[str, str], name: str, *arguments: str) -> Report:
    """The doctor's report on one of the pools in `POOLS`."""
    (directory / "site_app.py").write_text(POOLS)
    shutil.copy(unknown_driver.__file__, directory)
    command = ["-m", "threadbridge", "site_app:app", f"--pool=site_app:{name}", "--json", *arguments]
    return Report(run_check(command, env, cwd=directory))


@pytest.fixture(scope="module")
def server() -> Iterator[dict[str, str]]:
    """A server with two more users: one with all privileges, and one limited to one connection."""
    with private_mariadb() as made:
        directory = Path(made["MYSQL_UNIX_SOCKET"]).parent
        subprocess.run([MARIADB_SCRIPT, "stop", directory], check=True)
        mariadbd = shutil.which("mariadbd", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
        subprocess.run(
            [
                *(str(mariadbd), "--no-defaults", "--bootstrap", f"--datadir={directory}/data"),
                *(f"--tmpdir={directory}/tmp", *(["--user=root"] if os.geteuid() == 0 else [])),
            ],
            input=f"""
                FLUSH PRIVILEGES;
                CREATE USER administrator@localhost IDENTIFIED BY '{ADMINISTRATOR["password"]}';
                GRANT ALL ON *.* TO administrator@localhost;
                CREATE USER limited@localhost IDENTIFIED BY '{LIMITED["MYSQL_PASSWORD"]}' WITH MAX_USER_CONNECTIONS 1;
                GRANT SELECT ON myapplication.* TO limited@localhost;
            """,
            text=True,
            check=True,
            capture_output=True,
        )
        start_server(made)
        yield made


def administrator(server: dict[str, str]) -> Any:
    return MySQLdb.connect(unix_socket=server["MYSQL_UNIX_SOCKET"], **ADMINISTRATOR)


@contextmanager
def changed(server: dict[str, str], variable: str, value: int | str) -> Iterator[None]:
    """Sets a variable of the server inside the block."""
    with closing(administrator(server)) as connection, closing(connection.cursor()) as cursor:
        cursor.execute(f"SELECT @@GLOBAL.{variable}")
        [before] = cursor.fetchone()
        cursor.execute(f"SET GLOBAL {variable} = %s", (value,))
    try:
        yield
    finally:
        with closing(administrator(server)) as connection, closing(connection.cursor()) as cursor:
            cursor.execute(f"SET GLOBAL {variable} = %s", (before,))


def test_database_allows_too_few_connections(server: dict[str, str]) -> None:
    with changed(server, "max_connections", 25), closing(administrator(server)), closing(administrator(server)):
        report = check(server, "--frontends=2")
        assert report.bad == {}
        assert report.message("connections").endswith("max_connections is 25, of which other programs use 2 now")
        with closing(administrator(server)), closing(administrator(server)):
            report = check(server, "--frontends=2")
    assert (report.bad, report.status) == ({"connections": "error"}, 2)
    assert report.message("connections") == (
        "22 are needed (processes: 2, each with 10 in its pool and 1 for stopping queries), but max_connections is 25, "
        "of which other programs use 4 now"
    )
    assert "raise max_connections on the server by 1 or more" in report.advice("connections")


def test_the_frontends_own_connections_are_counted_once(server: dict[str, str]) -> None:
    with (
        changed(server, "max_connections", 24),
        closing(MySQLdb.connect(**connect_settings(server))),
        closing(MySQLdb.connect(**connect_settings(server))),
        closing(MySQLdb.connect(**connect_settings(server))),
    ):
        assert check(server, "--frontends=2").bad == {}


def test_pool_without_a_limit_has_a_connection_for_each_thread(server: dict[str, str], tmp_path: Path) -> None:
    report = check_pool(tmp_path, server, "unlimited", "--threads=100")
    assert "each with 104 in its pool" in report.message("connections")


def test_the_pools_of_one_server_are_added_up(server: dict[str, str], tmp_path: Path) -> None:
    report = check_pool(tmp_path, server, "several", "--processes=2")
    database, _, *others = MYSQL
    assert report.subjects[len(NO_DATABASE) :] == [
        *(f"{subject} (1)" for subject in MYSQL),
        "database (2)",
        *(f"{subject} (3)" for subject in (database, *others)),
    ]
    assert report.message("connections (1)").startswith(
        "24 are needed (processes: 2, each with 7 + 3 in its pools and 2 for stopping queries); "
    )
    assert report.message("queues").startswith(
        "quick: 4 threads, up to 1000 waiting requests; pool-1: 7 threads, up to"
    )


def test_user_may_have_one_connection(server: dict[str, str]) -> None:
    report = check({**server, **LIMITED})
    assert report.bad == {"connections": "error", "stopping queries": "error"}
    assert report.message("connections").endswith("stopping queries), but max_user_connections is 1")
    assert "raise max_user_connections on the server by 10 or more" in report.advice("connections")
    assert "max_user_connections" in report.message("stopping queries")


def test_database_closes_idle_connections_early(server: dict[str, str]) -> None:
    with changed(server, "wait_timeout", 60):
        report = check(server)
        assert (report.bad, report.status) == ({"idle connections": "warning"}, 1)
        assert report.message("idle connections").startswith("wait_timeout is 60 s")
        assert check(server, "--deadline=60").bad == {}


def test_connections_are_spread_over_two_servers(
    server: dict[str, str], mariadb: dict[str, str], tmp_path: Path
) -> None:
    assert check_pool(tmp_path, mariadb, "balanced").bad == {}
    other = " ".join((server["MYSQL_UNIX_SOCKET"], server["MYSQL_PASSWORD_FILE"]))
    report = check_pool(tmp_path, {**mariadb, "OTHER_SERVER": other}, "balanced")
    assert report.bad == {"stopping queries": "error"}
    assert "could not be stopped: the control connection came to " in report.message("stopping queries")
    assert "must reach each server at its own address" in report.advice("stopping queries")


@pytest.mark.parametrize(("pool", "how"), [("early", "ahead of"), ("late", "behind")])
def test_clocks_differ(mariadb: dict[str, str], tmp_path: Path, pool: str, how: str) -> None:
    report = check_pool(tmp_path, mariadb, pool)
    assert report.bad == {"clock": "warning"}
    message = re.fullmatch(r"the database's clock is (\d+) s (.+) this machine's", report.message("clock"))
    assert message is not None
    # The clock of the pool's database stands still meanwhile.
    assert 3580 < int(message[1]) < 3620
    assert message[2] == how


def test_time_zones_differ(server: dict[str, str]) -> None:
    with changed(server, "time_zone", "-03:30"):
        assert check({**server, "TZ": "HERE3:30"}).bad == {}
        report = check({**server, "TZ": "HERE-1"})
    assert report.bad == {"time zone": "warning"}
    assert "(-03:30) is -03:30 from UTC, this machine's is +01:00" in report.message("time zone")


def test_database_is_down(server: dict[str, str]) -> None:
    kill_server(server)
    try:
        report = check(server)
    finally:
        start_server(server)
    assert (report.bad, report.status) == ({"database": "error"}, 2)
    assert report.subjects == [*NO_DATABASE, "nginx", "database"]
    assert report.message("database").startswith("cannot connect: Can't connect to local server through socket")
    assert "whether the server runs" in report.advice("database")


def test_database_does_not_answer(mariadb: dict[str, str]) -> None:
    with line_to(mariadb["MYSQL_UNIX_SOCKET"]) as line:
        line.swallow()
        begun = time.monotonic()
        report = check({**mariadb, "MYSQL_UNIX_SOCKET": line.path})
        took = time.monotonic() - begun
    assert report.bad == {"database": "error"}
    assert report.message("database") == "the database has not answered within 5 s"
    assert took < 20


def test_password_is_wrong(mariadb: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "password").write_text("this is not it")
    report = check({**mariadb, "MYSQL_PASSWORD_FILE": str(tmp_path / "password")})
    assert report.bad == {"database": "error"}
    assert "Access denied for user 'myapplication'@'localhost' (using password: YES)" in report.message("database")
    assert "the user and the password" in report.advice("database")


def test_there_is_no_such_database(mariadb: dict[str, str]) -> None:
    report = check({**mariadb, "MYSQL_DATABASE": "yourapplication"})
    assert report.bad == {"database": "error"}
    assert "to database 'yourapplication' (error 1044)" in report.message("database")
    assert "the name of the database" in report.advice("database")


def test_another_kind_of_database(mariadb: dict[str, str], tmp_path: Path) -> None:
    report = check_pool(tmp_path, mariadb, "unknown")
    assert report.bad == {"database": "warning"}
    assert report.message("database") == "answers, but queries sent with the driver unknown_driver cannot be stopped"
    report = check_pool(tmp_path, mariadb, "sqlite")
    assert report.message("database") == "answers; there are no further checks for the driver sqlite3"
    report = check_pool(tmp_path, mariadb, "absent")
    assert report.bad == {"database": "error"}
    assert report.message("database") == "cannot connect: OperationalError: unable to open database file"


@pytest.mark.parametrize("name", ["pymysql", "connector", "mariadb"])
def test_other_drivers_for_mysql(mariadb: dict[str, str], tmp_path: Path, name: str) -> None:
    report = check_pool(tmp_path, mariadb, name)
    assert set(MYSQL) <= set(report.subjects)
    assert not report.bad.keys() & set(MYSQL)
    assert report.message("stopping queries").startswith("a test query was stopped")
    report = check_pool(tmp_path, {**mariadb, "MYSQL_DATABASE": "yourapplication"}, name)
    assert report.bad == {"database": "error"}
    assert "the name of the database" in report.advice("database")
