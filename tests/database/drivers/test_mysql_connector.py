"""mysql-connector written in C keeps the promises too."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.support.processes import ROOT

# Its own OpenSSL is newer than Debian's, and must be loaded before that: not in this process.
RUN = "import _mysql_connector, sys, pytest; sys.exit(pytest.main(sys.argv[1:]))"


def test_the_extension_in_c_keeps_the_contract() -> None:
    names = ("-k", "mysql-connector-C", "-p", "no:cacheprovider", "-p", "no:xdist")
    ran = subprocess.run(
        [sys.executable, "-c", RUN, "-q", *names, "tests/database/drivers/test_contract.py"],
        cwd=ROOT,
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ran.returncode == 0 and "skipped" not in ran.stdout, ran.stdout + ran.stderr
