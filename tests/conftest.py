"""Fixtures of the whole suite: a private MariaDB server, what is seen in it, and pools of connections to it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import MySQLdb
import pytest
from dbutils.pooled_db import PooledDB

from tests.databases import Witness, connect_settings
from tests.processes import ROOT, private_mariadb
from threadbridge.pool import PoolGuard

# A shell that runs the suite in the background has SIGINT ignored, and servers would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def mariadb() -> Iterator[dict[str, str]]:
    """A private, empty MariaDB server; gives the ``MYSQL_*`` variables that lead to it."""
    with private_mariadb() as variables:
        yield variables


@pytest.fixture(scope="session")
def sample_data() -> Iterator[dict[str, str]]:
    """Another such server, with the application's sample data in it."""
    with private_mariadb() as variables:
        subprocess.run(
            [sys.executable, "-m", "myapplication.sampledata"],
            check=True,
            cwd=ROOT,
            env={**os.environ, **variables},
        )
        yield variables


@pytest.fixture
def witness(mariadb: dict[str, str]) -> Iterator[Witness]:
    """A connection to the same server that sees what is done there."""
    witness = Witness(mariadb)
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
        if isinstance(guard, PoolGuard):
            guard.close()
        pool.close()
