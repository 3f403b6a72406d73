"""What the tests of repeated POSTs share: an application, a store, and servers that have both."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.idempotent import Application, serve
from tests.support.inprocess import BridgeThread


@pytest.fixture
def application() -> Application:
    return Application()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "outcomes.sqlite"


@pytest.fixture
def serving(application: Application, path: Path) -> Callable[..., BridgeThread]:
    """Makes servers of the application that have one store."""
    return lambda **parameters: serve(application, path, **parameters)
