"""Applications that many have, each served by a process that nobody has told of its pool; operators see and stop it."""

from __future__ import annotations

import select
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from typing import NamedTuple

import pytest
import requests
import sqlalchemy

from benchmarks import THREADS
from benchmarks.stacks.queries import QUERIES
from benchmarks.stacks.witness import Witness
from tests.support.admin_site import FROM_PAGE, Site, answer
from tests.support.databases import connect_settings
from tests.support.inprocess import wait_until
from tests.support.processes import Frontend, free_port
from threadbridge.sql.mask import masked


class Stack(NamedTuple):
    """An application, its kind of database, what the log calls its pool, and the options that it needs."""

    module: str
    kind: str
    pool: str
    options: tuple[str, ...] = ()


STACKS = {
    "flask-sqlalchemy-mysqlclient": Stack("benchmarks.stacks.flask_application", "mysql", "SQLAlchemy engine mysql"),
    "django-mysqlclient": Stack(
        "benchmarks.stacks.django_application", "mysql", "Django database 'default'", (f"--threads={THREADS}",)
    ),
    "flask-mysqldb": Stack(
        "tests.support.applications.flask_mysqldb",
        "mysql",
        "connections of MySQLdb in no pool",
        ("--pool=MySQLdb", f"--threads={THREADS}"),
    ),
    "flask-psycopg_pool": Stack("tests.support.applications.flask_psycopg", "postgresql", "ConnectionPool"),
}


class StackSite(Site):
    """Serves an application of `STACKS`; each request is in the slow log."""

    def __init__(self, stack: Stack, variables: Mapping[str, str]) -> None:
        self.admin_port = free_port()
        options = (*stack.options, "--slow_log=0.001", "--port={port}", f"--admin_port={self.admin_port}")
        Frontend.__init__(self, ("-m", "threadbridge", f"{stack.module}:app", *options), env=variables)


@pytest.fixture(params=STACKS)
def stack(request: pytest.FixtureRequest) -> Stack:
    return STACKS[request.param]


@pytest.fixture
def variables(stack: Stack, request: pytest.FixtureRequest) -> Iterator[Mapping[str, str]]:
    """The environment that leads to the database."""
    if stack.kind == "postgresql":
        yield request.getfixturevalue("postgresql")
        return
    mariadb = request.getfixturevalue("mariadb")
    settings = connect_settings(mariadb)
    url = sqlalchemy.URL.create(
        "mysql+mysqldb",
        settings["user"],
        settings["password"],
        database=settings["database"],
        query={"unix_socket": settings["unix_socket"]},
    )
    yield {**mariadb, "DATABASE_URL": url.render_as_string(hide_password=False)}


def test_operators_see_and_stop_queries_and_short_ones_pass_long_ones(
    stack: Stack, variables: Mapping[str, str]
) -> None:
    long = THREADS - 1
    with (
        StackSite(stack, variables) as site,
        closing(Witness(stack.kind, variables)) as witness,
        ExitStack() as clients,
    ):
        wait_until(lambda: f"pool: {stack.pool}" in site.output(), "the log says what was found")
        assert site.admin("/readyz?db=1").status_code == 200
        # Often enough that the costs of a busy moment do not count.
        for path in ("/started", *["/short"] * 8, "/started"):
            assert requests.get(site.url + path, timeout=20).status_code == 200
        sent = [clients.enter_context(site.send("/blocked")) for _ in range(long)]
        wait_until(lambda: witness.blocked == long, "all others but one wait for the lock")

        # One connection is left.
        for _ in range(20):
            assert requests.get(site.url + "/short", timeout=20).status_code == 200
        assert witness.blocked == long

        rows = site.document()["requests"]
        assert len(rows) == long
        blocked = QUERIES[stack.kind].blocked
        # The driver's class gets statements with their values in them.
        assert {row["sql"] for row in rows} == {masked(blocked) if "in no pool" in stack.pool else blocked}

        stopped = site.admin(f"/requests/{rows[0]['key']}/cancel", "POST", headers=FROM_PAGE)
        assert stopped.json() == {"stopped": 1}
        wait_until(lambda: witness.blocked == long - 1, "the database has stopped it")
        wait_until(lambda: f"slow request {rows[0]['id']}: GET /blocked" in site.output(), "it is in the slow log")
        assert blocked.partition("(")[0] in site.output().partition(f"slow request {rows[0]['id']}: ")[2]
        assert [bar["id"] for bar in site.document()["finished"] if bar["ending"] == "expired"] == [rows[0]["id"]]

        # Which of the clients was it? None of the others has been answered.
        answered, _, _ = select.select(sent, [], [], 20)
        assert [answer(client)[:13] for client in answered] == [b"HTTP/1.1 504 "]
        clients.close()
        wait_until(lambda: witness.blocked == 0, "the database has stopped the queries of clients that left")
        assert requests.get(site.url + "/short", timeout=20).status_code == 200
