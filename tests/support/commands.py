"""Runs ``python -m threadbridge`` in processes that begin with its modules imported, which is most of a start."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import threadbridge.__main__
from tests.support.doctor_report import allow_many_files
from threadbridge.cli.main import main

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload([__name__, "threadbridge.doctor.report"])


def threadbridge_in(
    directory: Path, arguments: Sequence[str], environment: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """What the command line says in a process of its own, which must end by itself."""
    output, errors = directory / "output", directory / "errors"
    process = _context.Process(target=_run, args=(directory, arguments, environment, output, errors))
    process.start()
    process.join(30)
    if process.exitcode is None:
        process.kill()
        raise TimeoutError(f"{arguments} runs for more than 30 s:\n{errors.read_text()}")
    return subprocess.CompletedProcess(arguments, process.exitcode, output.read_text(), errors.read_text())


def _run(directory: Path, arguments: Sequence[str], environment: Mapping[str, str], output: Path, errors: Path) -> None:
    for path, descriptor in ((output, 1), (errors, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    allow_many_files()
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(environment)
    sys.path.insert(0, str(directory))
    sys.argv = [str(threadbridge.__main__.__file__), *arguments]
    sys.exit(main())
