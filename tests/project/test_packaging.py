"""A wheel, compiled in an environment with only what it asks for: installed elsewhere, it serves, and is typed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from ast import literal_eval
from pathlib import Path

import pytest
import requests

from tests.support.processes import ROOT, Frontend

APPLICATION = """
import sys
from threadbridge.compiled import is_compiled

def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [repr((sys.modules["threadbridge"].__file__, is_compiled())).encode()]
"""

USE_TYPES = """
import threadbridge
reveal_type(threadbridge.Bridge)
reveal_type(threadbridge.current())
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
    # scripts/setup.sh has compiled all of the hot path. Here two modules, which import the others, take 20 s less; the
    # third has the base of a class in the first.
    builder = source / "setup.py"
    modules = 'runpy.run_path("threadbridge/compiled.py")["MODULES"]'
    few = '("crossing.exchange", "loop.bridge", "crossing.outgoing_response")'
    builder.write_text(builder.read_text().replace(modules, few))
    constraints = str(ROOT / "constraints.txt")
    environment = {**os.environ, "PIP_CONSTRAINT": constraints, "PIP_BUILD_CONSTRAINT": constraints}

    def pip(*arguments: str | Path, **variables: str) -> None:
        subprocess.run([sys.executable, "-m", "pip", *arguments], env=environment | variables, check=True)

    # Most of the time of a build is the compiler's, which need not optimise here.
    compiler = directory / "gcc"
    compiler.write_text('#!/bin/sh\nexec gcc "$@" -O0 -g0\n')
    compiler.chmod(0o755)
    # In an environment of its own, which pip makes for the build.
    pip("wheel", "--no-deps", "--wheel-dir", directory, source, THREADBRIDGE_COMPILE="1", CC=str(compiler))
    [wheel] = directory.glob("threadbridge-*.whl")
    venv.create(directory / "venv")
    interpreter = directory / "venv" / "bin" / "python"
    pip("--python", interpreter, "install", wheel)
    return interpreter


def test_an_installed_wheel_is_compiled_and_serves(python: Path, tmp_path: Path) -> None:
    (tmp_path / "legacy.py").write_text(APPLICATION)
    arguments = ("-m", "threadbridge", "legacy:app", "--threads=2", "--port={port}")
    with Frontend(arguments, env={"PYTHONPATH": str(tmp_path)}, cwd=tmp_path, python=python) as server:
        file, is_compiled = literal_eval(requests.get(server.url, timeout=30).text)
    assert Path(file).is_relative_to(python.parent.parent) and is_compiled


def test_nothing_but_the_package_is_installed(python: Path) -> None:
    """Above all not ``myapplication``, whose name somebody else's package may have."""
    [recorded] = python.parent.parent.glob("lib/*/site-packages/threadbridge-*.dist-info/RECORD")
    tops = {line.partition(",")[0].partition("/")[0] for line in recorded.read_text().splitlines()}
    assert {top for top in tops if not top.startswith("..")} == {"threadbridge", recorded.parent.name}


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
    assert "threadbridge.crossing.current.RunningRequest" in run.stdout
