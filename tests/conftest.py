"""Fixtures of the whole suite: a private MariaDB server, what is seen in it, and pools of connections to it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import MySQLdb
import pytest
from dbutils.pooled_db import PooledDB

from tests.support.databases import Witness, connect_settings
from tests.support.postgresql import private_postgresql
from tests.support.processes import ROOT, TEMPLATES, private_mariadb
from threadbridge.common.repeated_log import RepeatedLog
from threadbridge.compiled import SWITCH, has_others, is_compiled
from threadbridge.database.pools.dbutils import DBUtilsGuard
from threadbridge.loop.bridge import WEBSOCKET_LIBRARY

# A shell that runs the suite in the background has SIGINT ignored, and servers would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


# The files that take longest, so that no worker is left with one of them at the end. Files that measure what a load
# leaves behind come after those that keep the processors busy.
FIRST = (
    "test_start_life.py",
    "test_packaging.py",
    "test_http_fuzz.py",
    "test_benchmarks.py",
    "test_doctor.py",
    "test_command_line.py",
    "test_fault_campaign.py",
    "test_application_sampledata.py",
    "test_start_script.py",
    "test_attacks.py",
    "test_soak.py",
    "test_chaos.py",
    "test_tornado_programs.py",
    "test_connecting.py",
    "test_http_properties.py",
    "test_django.py",
    "test_admin_page.py",
    "test_model.py",
    "test_processes_faults.py",
)


def pytest_report_header() -> str:
    """Say which modules are tested."""
    return f"threadbridge: {'compiled' if is_compiled() else 'not compiled'}"


def pytest_configure(config: pytest.Config) -> None:
    """Give this run a directory of its own for temporary files; its workers have the environment from here.

    Servers look there for what killed ones have left, and must not find what an earlier run has.
    """
    if not hasattr(config, "workerinput"):
        # Those of the tests themselves stay for a while, to be looked at, and have short paths, for Unix sockets.
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())
        directory = tempfile.mkdtemp(prefix="tests-")
        if has_others():
            # Otherwise `--check` would warn that the compiled modules do not match the sources, and its tests fail.
            os.environ[SWITCH] = "0"
        # Some servers run as other users.
        os.chmod(directory, 0o1777)
        tempfile.tempdir = os.environ["TMPDIR"] = directory
        os.environ[TEMPLATES] = tempfile.mkdtemp(prefix="templates-")


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove it."""
    if not hasattr(config, "workerinput"):
        # A thread of a pool that no test has closed may still write there.
        shutil.rmtree(os.environ["TMPDIR"], ignore_errors=True)


@pytest.fixture(autouse=True)
def fresh_logs() -> None:
    """Let each test see the first line about a fault, which a test before it may have caused too."""
    for name, module in list(sys.modules.items()):
        if name.startswith("threadbridge."):
            for log in vars(module).values():
                if isinstance(log, RepeatedLog):
                    log._next_at, log._left_out = 0.0, 0


@pytest.fixture(autouse=True)
def imported_websockets() -> Iterator[None]:
    """Let bridges have no lane for WebSockets, although the tests of these have imported the library."""
    library = sys.modules.pop(WEBSOCKET_LIBRARY, None)
    yield
    if library is not None:
        sys.modules[WEBSOCKET_LIBRARY] = library


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest; the others stay in their order, random or not."""
    places = {name: place for place, name in enumerate(FIRST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object:
    """With ``--dist=loadfile``, hand out the stacks of the contract one by one: that file would take longest by far."""
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    def unit_of(nodeid: str) -> str:
        file, _, test = nodeid.partition("::")
        return f"{file}[{test.partition('[')[2]}" if "/contract/" in file else file

    scheduling = LoadFileScheduling(config, log)
    scheduling._split_scope = unit_of
    return scheduling


@pytest.fixture(scope="session")
def mariadb() -> Iterator[dict[str, str]]:
    """A private, empty MariaDB server; gives the ``MYSQL_*`` variables that lead to it."""
    with private_mariadb() as variables:
        yield variables


@pytest.fixture(scope="session")
def postgresql() -> Iterator[dict[str, str]]:
    """A private, empty PostgreSQL server; gives the ``PG*`` variables that lead to it."""
    with private_postgresql() as variables:
        yield variables


@pytest.fixture(scope="session")
def sample_data() -> Iterator[dict[str, str]]:
    """Another such server, with the application's sample data in it."""
    with private_mariadb(load_sample_data) as variables:
        yield variables


def load_sample_data(variables: dict[str, str]) -> None:
    """Load it as a user does."""
    subprocess.run(
        [sys.executable, "-m", "myapplication.sampledata"], check=True, cwd=ROOT, env={**os.environ, **variables}
    )


@pytest.fixture
def witness(mariadb: dict[str, str]) -> Iterator[Witness]:
    """A connection to the same server that sees what is done there, and holds the lock for which statements wait."""
    witness = Witness(mariadb)
    # What an earlier test left behind.
    witness.end_others()
    # The last test's witness may just be ending.
    assert witness.rows("SELECT GET_LOCK('held', 20)") == ((1,),)
    yield witness
    witness.connection.close()


@pytest.fixture
def make_pool(mariadb: dict[str, str]) -> Iterator[Callable[..., Any]]:
    """Makes pools of connections to the server, which are closed after the test."""
    pools = []

    def make(creator: Any = MySQLdb, **parameters: Any) -> Any:
        pools.append(PooledDB(creator, **{"maxconnections": 2, **connect_settings(mariadb), **parameters}))
        return pools[-1]

    yield make
    for pool in pools:
        guard = getattr(pool.connection, "__self__", None)
        if isinstance(guard, DBUtilsGuard):
            guard.close()
        pool.close()
