"""The stacks under test, each over a real server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing

import pytest

from tests.database.contract.django_stacks import DJANGO_STACKS
from tests.database.contract.servers import MariaDB, PostgreSQL, SQLite
from tests.database.contract.stacks import STACKS, Stack
from tests.support.postgresql import private_postgresql

ALL_STACKS = {**STACKS, **DJANGO_STACKS}


@pytest.fixture(scope="session")
def mariadb_server(mariadb: dict[str, str]) -> Iterator[MariaDB]:
    with closing(MariaDB(mariadb)) as server:
        yield server


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[PostgreSQL]:
    with private_postgresql() as settings, closing(PostgreSQL(settings)) as server:
        yield server


@pytest.fixture(scope="session")
def sqlite_file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SQLite]:
    with closing(SQLite(tmp_path_factory.mktemp("sqlite") / "data.sqlite")) as server:
        yield server


@pytest.fixture(params=ALL_STACKS)
def make_stack(request: pytest.FixtureRequest) -> Iterator[Callable[[int], Stack]]:
    """Makes a stack with so many connections; it is closed after the test."""
    fixture, make = ALL_STACKS[request.param]
    stacks: list[Stack] = []

    def make_stack(size: int = 2) -> Stack:
        server = request.getfixturevalue(fixture)
        server.make_tables()
        stacks.append(make(server, size))
        return stacks[-1]

    yield make_stack
    for stack in stacks:
        stack.close()
