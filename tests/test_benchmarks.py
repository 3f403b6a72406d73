"""The benchmarks' commands work; what they measure is not for tests."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.processes import ROOT


def test_the_hazards_are_measured_and_written_down(tmp_path: Path) -> None:
    results = tmp_path / "hazards.json"
    command = [sys.executable, "-m", "benchmarks.hazards", "--servers=threadbridge", "--hazards=stop"]
    finished = subprocess.run(
        [*command, f"--json={results}"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "threadbridge has reached all it must" in finished.stdout
    facts = json.loads(results.read_text(encoding="utf-8"))
    assert facts["servers"] == {"threadbridge": {"answered": 20, "exit status": 0, "port": "free"}}
    assert facts["threads"] == 10
    assert facts["machine"]["processors"] >= 1
    assert "tornado" in facts["versions"]


def test_an_unknown_server_is_refused_with_the_names_of_those_there_are() -> None:
    command = [sys.executable, "-m", "benchmarks.hazards", "--servers=apache"]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert finished.returncode == 2
    assert "there is no server 'apache'; there are threadbridge, WSGIContainer" in finished.stderr
