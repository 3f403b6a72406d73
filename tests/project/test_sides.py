"""Each function runs on the side that its docstring, or its package's, says."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.support.processes import ROOT


def test_no_function_runs_on_the_wrong_side(mariadb: dict[str, str]) -> None:
    # A process of its own: compiled functions cannot be watched.
    ended = subprocess.run(
        [sys.executable, "-m", "tests.support.sides"],
        cwd=ROOT,
        env={**os.environ, **mariadb, "THREADBRIDGE_COMPILED": "0"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    seen, *wrong = ended.stdout.splitlines()
    assert int(seen) > 200
    assert not wrong, "\n".join(wrong)
