"""Whether this thread collects garbage: what runs then may be under any lock, and must wait for nothing."""

from __future__ import annotations

import gc
import threading

# One collects at a time: the interpreter begins no second collection while one goes on.
_collecting_thread = 0


def _note(phase: str, info: dict[str, int]) -> None:
    global _collecting_thread
    _collecting_thread = threading.get_ident() if phase == "start" else 0


def watch_collector() -> None:
    """Have `is_collecting` know from now on. Any thread; again does no harm."""
    if _note not in gc.callbacks:
        gc.callbacks.append(_note)


def is_collecting() -> bool:
    """Whether the collector calls us."""
    return _collecting_thread == threading.get_ident()
