"""What a package index offers, as files in a directory; and virtual environments into which it is installed."""

from __future__ import annotations

import os
import shutil
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


def pip(*arguments: str | Path, **variables: str) -> None:
    """Run pip, with the versions that the project pins."""
    subprocess.run([sys.executable, "-m", "pip", *arguments], env=ENVIRONMENT | variables, check=True)


def add_dependencies(index: Path, *requirements: str, python: str = sys.executable, **variables: str) -> None:
    """Put the wheels of ``threadbridge[fast]`` and these packages, and of all that they need, into the index."""
    # By its file: a package of this name elsewhere is none of ours.
    [compiled] = index.glob("threadbridge-*-linux_*.whl")
    interpreter = shutil.which(python) or python
    build = ("--python", interpreter, "wheel", "--quiet", "--wheel-dir", index)
    pip(*build, f"{compiled}[fast]", *requirements, **variables)


def install(environment: Path, index: Path, *requirements: str) -> Path:
    """Install from the index alone into a new virtual environment; return the environment's ``bin``."""
    venv.create(environment)
    binaries = environment / "bin"
    # This Python's pip: to put another one there would take most of the time.
    pip("--python", binaries / "python", "install", "--no-index", "--find-links", index, *requirements)
    return binaries
