"""The stacks under test, each over a real server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.database.contract.django_stacks import DJANGO_STACKS
from tests.database.contract.servers import MariaDB, PostgreSQL, Server, SQLite
from tests.database.contract.stacks import STACKS, Stack

ALL_STACKS = {**STACKS, **DJANGO_STACKS}


@pytest.fixture
def mariadb_server(mariadb: dict[str, str]) -> Iterator[MariaDB]:
    with closing(MariaDB(mariadb)) as server:
        yield server


@pytest.fixture
def postgresql_server(postgresql: dict[str, str]) -> Iterator[PostgreSQL]:
    with closing(PostgreSQL(postgresql)) as server:
        yield server


@pytest.fixture
def sqlite_file(tmp_path: Path) -> Iterator[SQLite]:
    with closing(SQLite(tmp_path / "data.sqlite")) as server:
        yield server


@pytest.fixture(params=ALL_STACKS)
def name(request: pytest.FixtureRequest) -> str:
    """The stack's."""
    return str(request.param)


@pytest.fixture
def server(request: pytest.FixtureRequest, name: str) -> Server:
    """The stack's, with new tables."""
    found: Server = request.getfixturevalue(ALL_STACKS[name][0])
    found.make_tables()
    return found


@pytest.fixture
def make_stack(name: str, server: Server) -> Iterator[Callable[..., Stack]]:
    """Makes a stack with so many connections, by default over `server`; it is closed after the test."""
    stacks: list[Stack] = []

    def make_stack(size: int = 2, over: Server | None = None) -> Stack:
        stacks.append(ALL_STACKS[name][1](over or server, size))
        return stacks[-1]

    yield make_stack
    for stack in stacks:
        stack.close()
