"""What the tests of the database share."""

from __future__ import annotations

import pytest


@pytest.fixture
def severed_early(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cancelled requests that hold on to their connections lose them after 2 s instead of 5 s."""
    monkeypatch.setattr("threadbridge.database.stopper.SEVER_AFTER", 2.0)
    monkeypatch.setattr("threadbridge.database.stopper.ATTEMPT_TIMEOUT", 1.6)
