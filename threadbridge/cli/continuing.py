"""Lets the commands of web frameworks continue as ``threadbridge dev``, in the same process."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import NoReturn


def continue_as_dev(application: str, arguments: Sequence[str], environment: Mapping[str, str]) -> NoReturn:
    """Replace this program with ``python -m threadbridge dev`` for the application at this import path.

    So a mistake in the application, which would end the framework's command before it begins, is shown in the browser,
    and the debugger that this process has goes on with it. Modules are found where this process finds them.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    paths = [os.path.abspath(each) for each in sys.path[:1]]
    search = os.pathsep.join([*paths, *filter(None, [environment.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "threadbridge", "dev", application, *arguments]
    os.execve(sys.executable, command, {**environment, "PYTHONPATH": search})
