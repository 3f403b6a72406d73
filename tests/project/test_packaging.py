"""What a package index offers: built as for a release, installed elsewhere by its name, it serves, and is typed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from ast import literal_eval
from email import message_from_bytes
from email.message import Message
from pathlib import Path

import pytest
import requests

from tests.support.processes import ROOT, Frontend
from tests.support.wheels import add_dependencies, install, pip

SHOP = """
import sys
from flask import Flask
from threadbridge.compiled import is_compiled

app = Flask(__name__)

@app.get("/")
def place():
    return repr((sys.modules["threadbridge"].__file__, is_compiled(), "uvloop" in sys.modules))
"""

USE_TYPES = """
import threadbridge
reveal_type(threadbridge.Bridge)
reveal_type(threadbridge.current())
"""


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the source distribution, both wheels, and the wheels of what they need."""
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
    index = directory / "index"
    subprocess.run([sys.executable, "setup.py", "-q", "sdist", "--dist-dir", index], cwd=source, check=True)
    with tarfile.open(the_only(index, "threadbridge-*.tar.gz")) as archive:
        archive.extractall(directory, filter="data")
    unpacked = the_only(directory, "threadbridge-*")
    subprocess.run([sys.executable, "setup.py", "-q", "bdist_wheel", "--dist-dir", index], cwd=unpacked, check=True)
    # Most of the time of this build is the compiler's, which need not optimise here.
    compiler = directory / "gcc"
    compiler.write_text('#!/bin/sh\nexec gcc "$@" -O0 -g0\n')
    compiler.chmod(0o755)
    # In an environment of its own, which pip makes for the build, with only what the build asks for.
    pip("wheel", "--no-deps", "--wheel-dir", index, unpacked, THREADBRIDGE_COMPILE="1", CC=str(compiler))
    add_dependencies(index, "flask")
    return index


def the_only(directory: Path, pattern: str) -> Path:
    [found] = directory.glob(pattern)
    return found


@pytest.fixture(scope="module")
def installed(index: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """The ``bin`` of a new virtual environment with what people install first, and the seconds that this took."""
    began = seconds_of_children()
    binaries = install(tmp_path_factory.mktemp("installed") / "venv", index, "threadbridge[fast]", "flask")
    return binaries, seconds_of_children() - began


def seconds_of_children() -> float:
    """The processor's time of processes that have ended: the machine may be busy with other tests."""
    times = os.times()
    return times.children_user + times.children_system


def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        [name] = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return message_from_bytes(archive.read(name))


def test_a_page_is_served_compiled_within_a_minute(installed: tuple[Path, float], tmp_path: Path) -> None:
    binaries, installing = installed
    (tmp_path / "shop.py").write_text(SHOP)
    began = seconds_of_children()
    arguments = ("shop:app", "--port={port}")
    with Frontend(arguments, cwd=tmp_path, python=binaries / "threadbridge", env={"PYTHONPATH": ""}) as server:
        file, is_compiled, uvloop = literal_eval(requests.get(server.url, timeout=30).text)
    # tests/end_to_end/test_adoption.py looks at the clock.
    assert installing + seconds_of_children() - began < 60
    # Of the two wheels, pip has taken the one for this machine.
    assert Path(file).is_relative_to(binaries.parent) and is_compiled and uvloop


def test_the_wheel_for_any_machine_serves(index: Path, installed: tuple[Path, float], tmp_path: Path) -> None:
    binaries, _ = installed
    wheel = the_only(index, "threadbridge-*-none-any.whl")
    pip("install", "--quiet", "--no-deps", "--target", tmp_path / "any", wheel)
    (tmp_path / "shop.py").write_text(SHOP)
    arguments = ("-m", "threadbridge", "shop:app", "--port={port}")
    variables = {"PYTHONPATH": str(tmp_path / "any")}
    with Frontend(arguments, cwd=tmp_path, python=binaries / "python", env=variables) as server:
        file, is_compiled, _ = literal_eval(requests.get(server.url, timeout=30).text)
    assert Path(file).is_relative_to(tmp_path) and not is_compiled


def test_nothing_but_the_package_is_installed(installed: tuple[Path, float]) -> None:
    """Above all not ``myapplication``, whose name somebody else's package may have; and with ``fast`` no compiler."""
    packages = the_only(installed[0].parent, "lib/*/site-packages")
    recorded = the_only(packages, "threadbridge-*.dist-info/RECORD")
    tops = {line.partition(",")[0].partition("/")[0] for line in recorded.read_text().splitlines()}
    assert {top for top in tops if not top.startswith("..")} == {"threadbridge", recorded.parent.name}
    assert not list(packages.glob("mypy*"))


def test_wheels_have_all_files(index: Path) -> None:
    """Sources, types' marker, and pages, as in the tree."""
    files = {str(file.relative_to(ROOT)) for file in (ROOT / "threadbridge").rglob("*") if file.is_file()}
    files = {file for file in files if "__pycache__" not in file}
    assert "threadbridge/py.typed" in files
    for wheel in index.glob("threadbridge-*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            assert files <= set(archive.namelist())


def test_the_index_shows_a_description_whose_links_lead_somewhere(index: Path) -> None:
    for wheel in index.glob("threadbridge-*.whl"):
        found = metadata(wheel)
        assert (found["License-Expression"], found["License-File"]) == ("MIT", "LICENSE")
        description = str(found.get_payload())
        assert description.startswith("# threadbridge") and "moving an application" in description
        assert "](" not in description.replace("](http", "")


def test_installed_packages_bring_their_types(installed: tuple[Path, float], tmp_path: Path) -> None:
    (tmp_path / "use.py").write_text(USE_TYPES)
    run = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--python-executable", installed[0] / "python", "use.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout
    assert "threadbridge.loop.bridge.Bridge" in run.stdout
    assert "threadbridge.crossing.current.RunningRequest" in run.stdout
