"""Which Python this is, and whether its global lock is on: then one thread at a time runs Python code (PEP 703)."""

from __future__ import annotations

import gc
import platform
import sys
from typing import Any

# None before Python 3.13, which always has the lock.
_is_gil_enabled: Any = getattr(sys, "_is_gil_enabled", None)


def is_free_threaded() -> bool:
    """Return whether this Python was built to run without the lock. Any thread."""
    return "free-threading" in sys.version


def lock_is_on() -> bool:
    """Return whether only one thread at a time runs Python code. Any thread.

    In free-threaded Python, too, an extension module that does not declare that it can do without the lock turns it on,
    for good, when it is imported; so do ``PYTHON_GIL=1`` and ``-X gil=1``.
    """
    return True if _is_gil_enabled is None else bool(_is_gil_enabled())


def freeze_loaded() -> None:
    """Exempt all objects that are there now, which stay, from garbage collection: each would examine them. Any thread.

    Free-threaded Python visits frozen objects too, and collects the more often, the fewer others there are: there,
    garbage is only collected once.
    """
    gc.collect()
    if not is_free_threaded():
        gc.freeze()


def describe() -> str:
    """Return the version, and for free-threaded Python whether the lock is on."""
    version = f"Python {platform.python_version()}"
    if not is_free_threaded():
        return version
    return f"{version} free-threaded, {'but with its lock on' if lock_is_on() else 'without a lock'}"
