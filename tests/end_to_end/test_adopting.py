"""docs/adopting.md: what it tells people to write works."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import requests

from tests.support.processes import ROOT, Frontend
from threadbridge.settings.table import ALL, option_name

PAGE = (ROOT / "docs" / "adopting.md").read_text()
COMMANDS = re.findall(r"^python (-m threadbridge .*)$", PAGE, re.MULTILINE)
PROGRAMS = [block for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "WSGIContainer" not in block]

SHOP = """
import sqlite3
from dbutils.pooled_db import PooledDB

class Database:
    pool = PooledDB(sqlite3, maxconnections=10, database=":memory:")

db = Database()

def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"the shop"]

def create_app(name, debug):
    return app
"""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "shop.py").write_text(SHOP)
    return tmp_path


def test_the_page_has_something_to_run() -> None:
    assert (len(COMMANDS), len(PROGRAMS)) == (4, 2)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_accepted(directory: Path, command: str) -> None:
    checked = subprocess.run(
        [sys.executable, *shlex.split(command), "--check"],
        cwd=directory,
        env=Frontend(()).env,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert checked.stderr == ""
    # How many files may be open here is not the command's concern.
    assert [
        line for line in checked.stdout.splitlines() if line.startswith("error ") and "open files" not in line
    ] == []


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_serves(directory: Path, program: str) -> None:
    server = Frontend(("program.py",), cwd=directory)
    (directory / "program.py").write_text(program.replace("8000", str(server.port)))
    with server:
        assert requests.get(server.url, timeout=10).text == "the shop"


def test_the_program_with_run_takes_the_options_of_tornado(directory: Path) -> None:
    [program] = [each for each in PROGRAMS if "import run" in each]
    (directory / "program.py").write_text(program)
    with Frontend(("program.py", "--port={port}", "--log_file_prefix=shop.log"), cwd=directory) as server:
        assert requests.get(server.url, timeout=10).text == "the shop"
        assert server.stop() == 0
    assert "compiled" in (directory / "shop.log").read_text()
    assert "GET / HTTP/1.1" in (directory / "shop.access.log").read_text()


def test_every_option_that_is_named_exists() -> None:
    options = {option_name(name) for name in ALL}
    cells = [row.split("|")[2] for row in PAGE.splitlines() if row.startswith("| ")]
    named = {name for cell in cells for name in re.findall(r"--(\w+)", cell)}
    assert len(named) > 10
    assert named - options == set()
