"""Whether threads run Python code side by side, and what keeps free-threaded Python from it."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES

from threadbridge.common.interpreter import describe, is_free_threaded, lock_is_on
from threadbridge.doctor import Finding, ok, warning

# Seconds to import what this process has imported.
IMPORT_TIME = 60.0
# Imports these modules in order; prints the first that turns the lock on, which Python's warning names between quotes.
_IMPORTER = """
import importlib, sys, warnings
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    for name in sys.argv[1:]:
        try:
            importlib.import_module(name)
        except Exception:
            continue
        if sys._is_gil_enabled():
            told = [str(each.message) for each in seen if "GIL" in str(each.message)]
            print(told[0].split("'")[1] if told else name)
            break
"""


def check_interpreter() -> Finding:
    """Look at the lock; if it is on in free-threaded Python, find the module that has turned it on."""
    if not is_free_threaded():
        return ok(f"{describe()}: one thread at a time runs Python code; see docs/free_threading.md")
    if not lock_is_on():
        return ok(f"{describe()}: threads run Python code on all processors, and affinity has no effect")
    # None: neither the environment nor an option says anything.
    if getattr(sys.flags, "gil", None) == 1:
        return warning(f"{describe()}, because PYTHON_GIL or -X gil is 1", "unset it to use all processors")
    module = lock_turned_on_by()
    return warning(
        f"{describe()}: {module or 'a module'} does not declare that it can do without",
        f"use a version of {module or 'it'} made for free-threaded Python, or another package; PYTHON_GIL=0 keeps the "
        "lock off nevertheless, which may crash unless the module's authors say that it is safe",
    )


def lock_turned_on_by() -> str:
    """Return the first of the imported modules that turns the lock on; "" if that cannot be found out."""
    suffix = EXTENSION_SUFFIXES[0]
    modules = [
        name for name, module in list(sys.modules.items()) if str(getattr(module, "__file__", "")).endswith(suffix)
    ]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHON_GIL"}
    environment["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
    try:
        importer = subprocess.run(
            [sys.executable, "-c", _IMPORTER, *modules],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            timeout=IMPORT_TIME,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return importer.stdout.strip()
