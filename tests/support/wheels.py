"""What a package index offers, as files in a directory; and virtual environments into which it is installed."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

from tests.support.processes import ROOT

CONSTRAINTS = str(ROOT / "constraints.txt")
ENVIRONMENT = {
    **os.environ,
    "PIP_CONSTRAINT": CONSTRAINTS,
    "PIP_BUILD_CONSTRAINT": CONSTRAINTS,
    "PIP_DISABLE_PIP_VERSION_CHECK": "1",
}


def pip(*arguments: str | Path, python: str | Path = sys.executable, **variables: str) -> None:
    """Run this Python's pip, with the versions that the project pins."""
    subprocess.run([python, "-m", "pip", *arguments], env=ENVIRONMENT | variables, check=True)


def add_dependencies(index: Path, *requirements: str, python: str | Path = sys.executable) -> None:
    """Put the wheels of these packages, and of all that they need, into the index."""
    pip("wheel", "--quiet", "--find-links", index, "--wheel-dir", index, *requirements, python=python)


def install(environment: Path, index: Path, *requirements: str, python: str | Path = sys.executable) -> Path:
    """Install from the index alone into a new virtual environment; return the environment's ``bin``."""
    if python == sys.executable:
        venv.create(environment)
    else:
        subprocess.run([python, "-m", "venv", "--without-pip", environment], check=True)
    binaries = environment / "bin"
    # This Python's pip: to put another one there would take most of the time.
    pip("--python", binaries / "python", "install", "--no-index", "--find-links", index, *requirements)
    return binaries
