"""``--check`` on the pools' own settings, and on PostgreSQL: real pools on real servers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from tests.support.doctor_report import MYSQL, NO_DATABASE, SITE, Report, run_check

POSTGRESQL = ["database", "connections", "idle connections"]

# Each function returns a pool. The server closes a connection that has been idle for the time in `timeout`.
POOLS = (
    SITE
    + """
import os
from functools import partial

timeout = 3600

def mysql():
    with open(os.environ["MYSQL_PASSWORD_FILE"]) as file:
        return {
            "user": os.environ["MYSQL_USER"],
            "password": file.read().strip(),
            "database": os.environ["MYSQL_DATABASE"],
            "unix_socket": os.environ["MYSQL_UNIX_SOCKET"],
            "init_command": f"SET wait_timeout = {timeout}",
        }

def engine(**options):
    import MySQLdb
    from sqlalchemy import create_engine
    return create_engine("mysql://", creator=lambda: MySQLdb.connect(**mysql()), **options)

good = {"pool_size": 5, "max_overflow": 0, "pool_pre_ping": True}
engine_good = partial(engine, **good)
engine_overflow = partial(engine, pool_size=5, max_overflow=10, pool_pre_ping=True)
engine_unlimited = partial(engine, pool_size=5, max_overflow=-1, pool_pre_ping=True)
engine_untested = partial(engine, pool_size=5, max_overflow=0)
engine_old = partial(engine, pool_size=5, max_overflow=0, pool_recycle=7200)
engine_young = partial(engine, pool_size=5, max_overflow=0, pool_recycle=1800)
engine_patient = partial(engine, **good, pool_timeout=200)

def engine_silent():
    from threadbridge.database.pools import sqlalchemy_kind
    del sqlalchemy_kind.advice
    return engine_overflow()

def engine_broken():
    from threadbridge.database.pools import sqlalchemy_kind
    sqlalchemy_kind.advice = lambda pool, load: [1 / 0]
    return engine_overflow()

def engine_null():
    from sqlalchemy.pool import NullPool
    return engine(poolclass=NullPool)

def engine_file():
    from sqlalchemy import NullPool, create_engine
    return create_engine("sqlite:///notes.db", poolclass=NullPool)

def pooled(**options):
    import MySQLdb
    from dbutils.pooled_db import PooledDB
    return PooledDB(MySQLdb, maxconnections=5, **options, **mysql())

pooled_good = pooled
pooled_few = partial(pooled, maxcached=2)
pooled_raising = partial(pooled, blocking=False)
pooled_waiting = partial(pooled, blocking=True)
pooled_untested = partial(pooled, ping=0)

def connector(**options):
    from mysql.connector.pooling import MySQLConnectionPool
    return MySQLConnectionPool(pool_size=2, **options, **mysql())

connector_good = connector
connector_dirty = partial(connector, pool_reset_session=False)

def psycopg_pool(**options):
    from psycopg_pool import ConnectionPool
    options = {"min_size": 1, "max_size": 5, "open": False, **options}
    return ConnectionPool(kwargs={"options": f"-c idle_session_timeout={timeout}s"}, **options)

def psycopg_good():
    from psycopg_pool import ConnectionPool
    return psycopg_pool(check=ConnectionPool.check_connection)

psycopg_untested = partial(psycopg_pool, max_lifetime=3601)
psycopg_young = partial(psycopg_pool, max_lifetime=1800)
psycopg_empty = partial(psycopg_pool, min_size=0, max_lifetime=1800)
psycopg_patient = partial(psycopg_pool, max_lifetime=1800, timeout=200)

def psycopg_null():
    from psycopg_pool import NullConnectionPool
    return NullConnectionPool(max_size=5, open=False)

def django(engine, database, **changes):
    import django
    from django.conf import settings
    from django.db import connections
    settings.configure(DATABASES={"default": {"ENGINE": f"django.db.backends.{engine}", **database, **changes}})
    django.setup()
    return connections

def on_mysql(**changes):
    given = mysql()
    database = {"NAME": given["database"], "USER": given["user"], "PASSWORD": given["password"]}
    return django("mysql", {**database, "HOST": given["unix_socket"]}, **changes)

on_postgresql = partial(django, "postgresql", {"NAME": "postgres"})
django_default = on_mysql
django_kept = partial(on_mysql, CONN_MAX_AGE=600)
django_good = partial(on_mysql, CONN_MAX_AGE=None, CONN_HEALTH_CHECKS=True)
django_file = partial(django, "sqlite3", {"NAME": "notes.db"})
django_postgresql = on_postgresql
django_pool = partial(on_postgresql, OPTIONS={"pool": {"min_size": 1, "max_size": 5}})
django_patient = partial(on_postgresql, OPTIONS={"pool": {"min_size": 1, "max_size": 5, "timeout": 200}})
"""
)


def check_pool(directory: Path, env: dict[str, str], name: str, *arguments: str) -> Report:
    """The doctor's report on one of the pools in `POOLS`."""
    (directory / "site_app.py").write_text(POOLS)
    command = ["-m", "threadbridge", "site_app:app", f"--pool=site_app:{name}", "--json", *arguments]
    return Report(run_check(command, env, cwd=directory))


MORE_THREADS = "--threads=20"


@pytest.mark.parametrize(
    ("name", "arguments", "setting", "problem", "remedy"),
    [
        ("engine_overflow", [], "max_overflow", "keeps 5 connections, but 15 are", "pool_size=15 and max_overflow=0"),
        ("engine_unlimited", [MORE_THREADS], "max_overflow", "but 20 are in use", "set pool_size=20 and max_overflow"),
        ("engine_untested", [], "pool_pre_ping", "idle for 3600 s", "a pool_recycle of less than 3600"),
        ("engine_old", [], "pool_pre_ping", "idle for 3600 s", "set pool_pre_ping=True"),
        ("engine_patient", [MORE_THREADS], "pool_timeout", "20 threads share 5", "less than the deadline, such as 30"),
        ("engine_null", ["--threads=7"], "poolclass", "each use of a NullPool connects", "set pool_size=7 and max_"),
        ("pooled_few", [], "maxcached", "keeps only 2 idle connections, but 5", "leave out maxcached, or set it to 5"),
        ("pooled_raising", [MORE_THREADS], "blocking", "20 threads share 5 connections", "set blocking=True"),
        ("pooled_untested", [], "ping", "without testing them", "leave out ping=0"),
        ("connector_dirty", [], "pool_reset_session", "reaches the next request", "leave out pool_reset_session"),
        ("django_default", [], "CONN_MAX_AGE", "each request connects", "CONN_MAX_AGE=600 and CONN_HEALTH_CHECKS=True"),
        ("django_kept", [], "CONN_HEALTH_CHECKS", "not tested", "set CONN_HEALTH_CHECKS=True"),
        (
            "psycopg_untested",
            [],
            "check",
            "idle for 3600 s",
            "check=ConnectionPool.check_connection, or a max_lifetime",
        ),
        ("psycopg_empty", [], "min_size", "it is 0: after 600 s", "at least 1, or to 5"),
        ("psycopg_patient", [MORE_THREADS], "timeout", "may wait for 200 s", "set timeout to less than the deadline"),
        ("psycopg_null", [], "NullConnectionPool", "each use of the pool connects", "use a ConnectionPool, unless"),
        ("django_postgresql", [], "CONN_MAX_AGE", "each request connects", 'or OPTIONS={"pool": True}'),
        ("django_patient", [MORE_THREADS], "timeout", "20 threads share 5 connections", "set timeout to less"),
    ],
)
def test_a_setting_that_works_badly(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    name: str,
    arguments: list[str],
    setting: str,
    problem: str,
    remedy: str,
) -> None:
    report = check_pool(tmp_path, server_of(request, name), name, *arguments)
    assert report.bad == {setting: "warning"}
    assert problem in report.message(setting)
    assert remedy in report.advice(setting)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("engine_good", [MORE_THREADS]),
        ("engine_overflow", ["--threads=5"]),
        ("engine_young", []),
        ("engine_patient", []),
        # A kind of another package may offer no advice.
        ("engine_silent", []),
        ("engine_file", []),
        ("pooled_good", []),
        ("pooled_waiting", [MORE_THREADS]),
        ("pooled_raising", []),
        ("connector_good", []),
        ("django_good", []),
        ("django_file", []),
        ("psycopg_good", [MORE_THREADS]),
        ("psycopg_young", []),
        ("django_pool", []),
    ],
)
def test_settings_that_work_well(
    request: pytest.FixtureRequest, tmp_path: Path, name: str, arguments: list[str]
) -> None:
    report = check_pool(tmp_path, server_of(request, name), name, *arguments)
    assert report.bad == {}
    if not name.endswith("_file"):
        of_mysql = "MYSQL_USER" in server_of(request, name)
        assert report.subjects == [*NO_DATABASE, *(MYSQL if of_mysql else POSTGRESQL)]


def server_of(request: pytest.FixtureRequest, name: str) -> dict[str, str]:
    """The variables that lead to the pool's database."""
    is_postgresql = name.startswith("psycopg") or name in ("django_postgresql", "django_pool", "django_patient")
    variables: dict[str, str] = request.getfixturevalue("postgresql" if is_postgresql else "mariadb")
    return variables


def test_django_without_a_pool_needs_a_connection_for_each_thread(mariadb: dict[str, str], tmp_path: Path) -> None:
    report = check_pool(tmp_path, mariadb, "django_good", "--threads=20", "--processes=3")
    # The quick lane has four more threads.
    assert report.message("connections").startswith(
        "75 are needed (processes: 3, each with 24 in its pool and 1 for stopping queries); max_connections is "
    )


@contextmanager
def altered(postgresql: dict[str, str], change: str, back: str) -> Iterator[None]:
    """Executes a statement, and at the end another."""
    with psycopg.connect(host=postgresql["PGHOST"], user="test", dbname="postgres", autocommit=True) as connection:
        connection.execute(change.encode())
        try:
            yield
        finally:
            connection.execute(back.encode())


def test_postgresql_allows_too_few_connections(postgresql: dict[str, str], tmp_path: Path) -> None:
    report = check_pool(tmp_path, postgresql, "psycopg_good", "--processes=20")
    assert report.bad == {"connections": "error"}
    assert report.message("connections") == (
        "120 are needed (processes: 20, each with 5 in its pool and 1 for stopping queries), but max_connections is "
        "100, of which other programs use 3 now"
    )
    assert report.advice("connections").startswith("raise max_connections on the server by 23 or more")
    with altered(postgresql, "ALTER ROLE test CONNECTION LIMIT 5", "ALTER ROLE test CONNECTION LIMIT -1"):
        report = check_pool(tmp_path, postgresql, "psycopg_good")
    assert report.bad == {"connections": "error"}
    assert report.message("connections").endswith("but the role's CONNECTION LIMIT is 5")


def test_postgresql_closes_idle_connections_early(postgresql: dict[str, str], tmp_path: Path) -> None:
    name = "idle_in_transaction_session_timeout"
    with altered(postgresql, f"ALTER ROLE test SET {name} = '60s'", f"ALTER ROLE test RESET {name}"):
        report = check_pool(tmp_path, postgresql, "psycopg_good")
        assert report.bad == {"idle connections": "warning"}
        assert report.message("idle connections").startswith(f"{name} is 60 s, but a request may run for 180 s")
        assert check_pool(tmp_path, postgresql, "psycopg_good", "--deadline=60").bad == {}


def test_the_settings_of_several_pools_are_told_apart(mariadb: dict[str, str], tmp_path: Path) -> None:
    report = check_pool(tmp_path, mariadb, "engine_overflow,site_app:pooled_few")
    assert report.bad == {"max_overflow (1)": "warning", "maxcached (2)": "warning"}


def test_a_kind_whose_advice_fails(mariadb: dict[str, str], tmp_path: Path) -> None:
    report = check_pool(tmp_path, mariadb, "engine_broken")
    assert report.bad == {"pool settings": "warning"}
    assert "ZeroDivisionError" in report.message("pool settings")
