"""What the end-to-end tests share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest

from benchmarks.database import ProcessList


@pytest.fixture(scope="module")
def process_list(mariadb: dict[str, str]) -> Iterator[ProcessList]:
    """The statements that sleep in the database."""
    with closing(ProcessList(mariadb)) as process_list:
        yield process_list
