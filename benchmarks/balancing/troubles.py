"""What can be wrong with a host while it still answers: each is done to one of three, and undone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing, suppress
from pathlib import Path
from typing import Any, NamedTuple

import MySQLdb

from benchmarks.clients import head
from tests.support.balancers import Fleet

# Long requests of clients that come to the host directly: more than it has connections.
LONG_CLIENTS = 15


class Trouble(NamedTuple):
    """A trouble by its name in the table; the function's context lasts as long as the trouble."""

    name: str
    begin: Callable[[Fleet, Path, Mapping[str, str]], AbstractAsyncContextManager[None]]


def administrator(mariadb: Mapping[str, str]) -> Any:
    """A connection that may end those of others."""
    return MySQLdb.connect(unix_socket=mariadb["MYSQL_UNIX_SOCKET"], user="root")


@asynccontextmanager
async def nothing(fleet: Fleet, directory: Path, mariadb: Mapping[str, str]) -> AsyncIterator[None]:
    yield


@asynccontextmanager
async def slow(fleet: Fleet, directory: Path, mariadb: Mapping[str, str]) -> AsyncIterator[None]:
    file = directory / fleet.hosts[0].name / "slow"
    file.touch()
    yield
    file.unlink()


@asynccontextmanager
async def long_requests(fleet: Fleet, directory: Path, mariadb: Mapping[str, str]) -> AsyncIterator[None]:
    host = fleet.hosts[0]

    async def ask() -> None:
        while True:
            with suppress(OSError, asyncio.IncompleteReadError):
                reader, writer = await asyncio.open_connection(host.address, host.port)
                with closing(writer):
                    writer.write(head("/long"))
                    await reader.readuntil(b"\r\n\r\n")
                continue
            await asyncio.sleep(0.1)

    clients = [asyncio.create_task(ask()) for _ in range(LONG_CLIENTS)]
    yield
    for client in clients:
        client.cancel()
    await asyncio.wait(clients)


@asynccontextmanager
async def no_database(fleet: Fleet, directory: Path, mariadb: Mapping[str, str]) -> AsyncIterator[None]:
    name = fleet.hosts[0].name
    socket = directory / name / "database"
    server = socket.readlink()
    socket.unlink()
    with closing(administrator(mariadb)) as connection, closing(connection.cursor()) as cursor:
        cursor.execute(f"KILL USER {name}")
    yield
    socket.symlink_to(server)


HEALTHY = Trouble("healthy", nothing)
TROUBLES = (
    Trouble("one host 4 times slower", slow),
    Trouble("one full of long requests", long_requests),
    Trouble("one without database", no_database),
)
