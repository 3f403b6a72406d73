"""``pip install .`` in a clean virtual environment: importable and typed, with the page's files."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from tests.processes import ROOT

SERVE_PAGE = """
import re
import threadbridge
from myapplication import app

client = app.test_client()
page = client.get("/")
assert page.status_code == 200, page.status
files = re.findall(r'(?:src|href)="(/static/[^"]+)', page.text)
assert files
for file in files:
    assert client.get(file).status_code == 200, file
print(threadbridge.__file__)
"""

USE_TYPES = """
import threadbridge
from myapplication import app, db
reveal_type(threadbridge.Bridge)
reveal_type(db)
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a virtual environment with nothing but the project and what it needs."""
    directory = tmp_path_factory.mktemp("packaging")
    # A copy: building leaves files beside the sources, and would take in those of an earlier build.
    source = directory / "source"
    source.mkdir()
    for name in ("setup.cfg", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("threadbridge", "myapplication"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    venv.create(directory / "venv", with_pip=True)
    interpreter = directory / "venv" / "bin" / "python"
    constraints = str(ROOT / "constraints.txt")
    for package in ("pip", f"{source}[application]"):
        subprocess.run(
            [interpreter, "-m", "pip", "install", package],
            env={**os.environ, "PIP_CONSTRAINT": constraints, "PIP_BUILD_CONSTRAINT": constraints},
            check=True,
        )
    return interpreter


def test_installed_packages_serve_the_page_with_its_files(python: Path, tmp_path: Path) -> None:
    run = subprocess.run([python, "-I", "-c", SERVE_PAGE], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert Path(run.stdout.strip()).is_relative_to(python.parent.parent)


def test_installed_packages_bring_their_types(python: Path, tmp_path: Path) -> None:
    (tmp_path / "use.py").write_text(USE_TYPES)
    run = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--python-executable", python, "use.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout
    assert "threadbridge.loop.bridge.Bridge" in run.stdout
    assert "myapplication.database.DBConnection" in run.stdout
