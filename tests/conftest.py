"""Fixtures of the whole suite: a private MariaDB server, with or without the sample data."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.processes import ROOT, private_mariadb

# A shell that runs the suite in the background has SIGINT ignored, and servers would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def mariadb() -> Iterator[dict[str, str]]:
    """A private, empty MariaDB server; gives the ``MYSQL_*`` variables that lead to it."""
    with private_mariadb() as variables:
        yield variables


@pytest.fixture(scope="session")
def sample_data(mariadb: dict[str, str]) -> dict[str, str]:
    """The same server with the application's sample data in it."""
    subprocess.run(
        [sys.executable, "-m", "myapplication.sampledata"],
        check=True,
        cwd=ROOT,
        env={**os.environ, **mariadb},
    )
    return mariadb
