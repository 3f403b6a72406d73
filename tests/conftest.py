"""Fixtures of the whole suite: a private MariaDB server, with or without the sample data."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.processes import ROOT

MARIADB_SCRIPT = ROOT / "scripts" / "mariadb.sh"


@pytest.fixture(scope="session")
def mariadb() -> Iterator[dict[str, str]]:
    """A private, empty MariaDB server; gives the ``MYSQL_*`` variables that lead to it."""
    # Not pytest's own directory: the path of a Unix socket may have only 107 bytes.
    directory = Path(tempfile.mkdtemp(prefix="mariadb-"))
    try:
        subprocess.run([MARIADB_SCRIPT, "start", directory], check=True)
        printed = subprocess.run([MARIADB_SCRIPT, "env", directory], check=True, capture_output=True, text=True).stdout
        yield dict(line.split("=", 1) for line in printed.splitlines())
    finally:
        subprocess.run([MARIADB_SCRIPT, "stop", directory], check=True)
        shutil.rmtree(directory)


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
