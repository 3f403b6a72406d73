"""Fixtures of the tests with PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.postgresql import Witness


@pytest.fixture
def witness(postgresql: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Witness]:
    for name, value in postgresql.items():
        monkeypatch.setenv(name, value)
    witness = Witness()
    yield witness
    witness.connection.close()


@pytest.fixture(params=["psycopg", "psycopg2"])
def driver(request: pytest.FixtureRequest) -> Any:
    """Both drivers, if the second is installed."""
    return pytest.importorskip(request.param)
