"""The virtual environment with the other servers, and the facts about the machine that belong to every figure."""

from __future__ import annotations

import compileall
import json
import os
import platform
import re
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

from benchmarks.contenders import CONTENDERS, Contender
from tests.support.processes import ROOT

DIRECTORY = ROOT / "var" / "benchmarks-venv"
REQUIREMENTS = ROOT / "benchmarks" / "requirements.txt"
CONSTRAINTS = ROOT / "constraints.txt"


def prepare(contenders: Sequence[Contender]) -> tuple[Path, dict[str, str]]:
    """Install what is missing; give the environment's directory, and why which of the servers cannot be had.

    Without servers from elsewhere, it is the environment that this process runs in. Raises ``CalledProcessError`` when
    not even the application can be installed.
    """
    # As pip does with the packages of the others: a process that has to do it itself is larger.
    for directory in ("threadbridge", "myapplication", "benchmarks"):
        compileall.compile_dir(ROOT / directory, quiet=1)
    if not any(contender.packages for contender in contenders):
        return Path(sys.prefix), {}
    if not (DIRECTORY / "bin" / "pip").exists():
        print(f"Creating the virtual environment {DIRECTORY}", flush=True)
        venv.create(DIRECTORY, with_pip=True, clear=True)
    # What was installed last, and completely.
    stamp = DIRECTORY / "installed"
    wanted = "".join(file.read_text(encoding="utf-8") for file in (ROOT / "setup.cfg", CONSTRAINTS, REQUIREMENTS))
    if stamp.exists() and stamp.read_text(encoding="utf-8") == wanted:
        return DIRECTORY, {}
    application = install(
        "the application", ["--editable", f"{ROOT}[application,fast,django,sqlalchemy]", "Flask-SQLAlchemy"]
    )
    if application.returncode:
        print(application.stdout)
        application.check_returncode()
    failed: dict[str, str] = {}
    # Variants of a server need the same packages.
    for packages, first in {contender.packages: contender for contender in reversed(contenders)}.items():
        if packages and (finished := install(first.name, packages)).returncode:
            failed |= {each.name: finished.stdout.strip() for each in contenders if each.packages == packages}
    if not failed and all(contender in contenders for contender in CONTENDERS):
        stamp.write_text(wanted, encoding="utf-8")
    return DIRECTORY, failed


def install(what: str, packages: Sequence[str]) -> subprocess.CompletedProcess[str]:
    print(f"Installing {what} …", flush=True)
    pip: list[str | Path] = [
        DIRECTORY / "bin" / "python",
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
    ]
    files: list[str | Path] = ["--constraint", CONSTRAINTS, "--constraint", REQUIREMENTS]
    return subprocess.run(
        [*pip, *files, *packages], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )


def versions(environment: Path) -> dict[str, str]:
    """What is installed in an environment, by names in small letters."""
    listed = subprocess.run(
        [environment / "bin" / "python", "-m", "pip", "list", "--format=json", "--disable-pip-version-check"],
        check=True,
        capture_output=True,
        text=True,
    )
    return {package["name"].lower(): package["version"] for package in json.loads(listed.stdout)}


def machine() -> dict[str, str | int]:
    """What the figures depend on."""
    model = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    memory = re.search(r"^MemTotal: +(\d+) kB$", Path("/proc/meminfo").read_text(), re.MULTILINE)
    database = subprocess.run(["mariadbd", "--version"], check=False, capture_output=True, text=True).stdout
    database_version = re.search(r"Ver (\S+)", database)
    return {
        "processor": model[1] if model else platform.machine(),
        "processors": len(os.sched_getaffinity(0)),
        "memory_mb": int(memory[1]) // 1024 if memory else 0,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "mariadb": database_version[1] if database_version else "unknown",
    }
