"""Run DBUtils' own tests of ``PooledDB`` with the guard attached to every pool that they make.

They come from the package index, as the source distribution of the version that is installed. Run this by hand when
DBUtils has a new version: ``.venv/bin/python .ci/dbutils_suite.py``; further arguments go to pytest.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path

# The tests that look at what the guard changes on purpose, and why.
_CHECKED = "an idle connection is handed out without a ping only if it came back just now and has nothing to read"
_DELETED = "the guard leads to its pool, so that a deleted pool is closed by the garbage collector"
_FATAL = "the guard's own function is there; it asks the pool's"
DIFFERENT = {
    "test_close_all_when_pool_is_deleted": _DELETED,
    "test_close_all_shared_when_pool_is_deleted": _DELETED,
    "test_equally_shared": "the connection that came back last is handed out first",
    "test_failed_transaction": "a connection lost in a transaction is replaced only after a rollback",
    "test_isfatal": _FATAL,
    "test_isfatal_default": _FATAL,
    "test_maxusage": "a connection that was used too often is replaced when it comes back, never before",
    "test_ping_check_never_dedicated": "a closed connection is not handed out again, even if the pool does not ping",
    "test_ping_check_when_fetched_dedicated": _CHECKED,
    "test_reset_transaction": "with an unknown driver, a transaction may be open: it is rolled back even without reset",
}

PLUGIN = """
import pytest
from dbutils.pooled_db import PooledDB

from threadbridge.database.pools.dbutils import DBUtilsGuard

make = PooledDB.__init__


def make_and_guard(pool, *args, **kwargs):
    make(pool, *args, **kwargs)
    size = len(pool._idle_cache)
    DBUtilsGuard(pool)
    # The guard closes those that were made before it. They are made again, as the constructor does.
    idle = [pool.dedicated_connection() for _ in range(size)]
    while idle:
        idle.pop().close()


PooledDB.__init__ = make_and_guard
DIFFERENT = {different!r}


def pytest_collection_modifyitems(items):
    for item in items:
        reason = DIFFERENT.get(item.originalname)
        if reason is not None:
            item.add_marker(pytest.mark.xfail(reason=reason, strict=not hasattr(item, 'callspec')))
"""


def main() -> int:
    """Return pytest's exit status."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        source = f"DBUtils=={version('DBUtils')}"
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary=:all:", f"--dest={name}", source],
            check=True,
        )
        with tarfile.open(next(directory.glob("*.tar.gz"))) as archive:
            archive.extractall(directory, filter="data")
        [tests] = directory.glob("*/tests")
        (tests / "guarded.py").write_text(PLUGIN.format(different=DIFFERENT))
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "tests.guarded",
            "tests/test_pooled_db.py",
            *sys.argv[1:],
        ]
        return subprocess.run(command, cwd=tests.parent).returncode


if __name__ == "__main__":
    sys.exit(main())
