"""What each thread of this process is doing."""

from __future__ import annotations

import faulthandler
import re
import tempfile

# What `threading.Thread.start` raises when there can be no more threads for the moment.
NOT_STARTED = (RuntimeError, MemoryError)


def stacks() -> dict[int, str]:
    """The calls of each thread, innermost first, by the thread's `threading.get_ident`.

    Of more than a hundred threads some are left out.
    """
    # Not by `sys._current_frames`: walking the frames of a thread that begins to move may crash the interpreter. This
    # one lets no thread move, and writes to real files only.
    with tempfile.TemporaryFile() as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        found = file.read().decode(errors="backslashreplace").split("\n\n")
    by_thread = {}
    for stack in found:
        head, _, calls = stack.partition("\n")
        number = re.search(r"0x[0-9a-f]+", head)
        if number is not None:
            by_thread[int(number[0], 16)] = calls
    return by_thread
