"""Fixtures of the tests that are the same for all drivers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import mysql.connector
import pytest

from tests.database.drivers.stacks import (
    ALL,
    MYSQL,
    POSTGRESQL,
    PostgreSQLStack,
    SQLiteStack,
    Stack,
    environment,
    mysql_stacks,
)
from tests.support import databases, postgresql


@pytest.fixture(params=ALL)
def stack(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stack]:
    """Each driver with its database. A test may choose some of them by ``parametrize(…, indirect=True)``."""
    name = request.param
    if name == "mysql-connector-C" and not mysql.connector.HAVE_CEXT:
        pytest.skip("test_mysql_connector.py runs these tests with it")
    with ExitStack() as exits:
        if name in MYSQL:
            mariadb = databases.Witness(request.getfixturevalue("mariadb"))
            exits.callback(mariadb.connection.close)
            stack = mysql_stacks(mariadb)[name]()
        elif name in POSTGRESQL:
            exits.enter_context(environment(request.getfixturevalue("postgresql")))
            witness = postgresql.Witness()
            exits.callback(witness.connection.close)
            stack = PostgreSQLStack(witness, POSTGRESQL[name])
        else:
            stack = SQLiteStack(tmp_path / "notes.sqlite")
        yield exits.enter_context(closing(stack))
