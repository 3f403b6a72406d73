"""Fixtures of the tests of single kinds of pools."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from psycopg_pool import ConnectionPool

from tests.support.postgresql import Witness
from threadbridge.database.pools.psycopg_pool import PsycopgPoolGuard


@pytest.fixture
def postgresql_witness(postgresql: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Witness]:
    """What happens there; the variables are set."""
    for name, value in postgresql.items():
        monkeypatch.setenv(name, value)
    witness = Witness()
    yield witness
    witness.connection.close()


@pytest.fixture
def make_psycopg_pool(postgresql_witness: Witness) -> Iterator[Callable[..., Any]]:
    """Makes pools with their guards, which are closed after the test."""
    made = []

    def make(kind: Any = ConnectionPool, **parameters: Any) -> tuple[Any, PsycopgPoolGuard]:
        pool = kind(open=True, **{"min_size": 1, "max_size": 2, **parameters})
        made.append((pool, PsycopgPoolGuard(pool)))
        return made[-1]

    yield make
    for pool, guard in made:
        guard.close()
        pool.close()
