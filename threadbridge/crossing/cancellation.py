"""Which requests are cancelled, and the threads that cancel them."""

from __future__ import annotations

from typing import Final, Literal

from threadbridge.common.worker_threads import TaskThreads
from threadbridge.crossing.current import TrackedRequest

# The safe methods of RFC 9110, section 9.2.1, without TRACE.
_SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})


class Cancellation:
    """Cancels requests whose clients leave, as the setting ``cancel`` says. Loop side, except in `threads`."""

    def __init__(self, policy: Literal["safe", "all", "none"]) -> None:
        self._policy = policy
        # Several, since callbacks of applications may block for a moment.
        self.threads = TaskThreads(4, "threadbridge-cancel")

    def applies_to(self, method: str) -> bool:
        """Return whether a request with this method is cancelled when its client leaves."""
        return self._policy == "all" or (self._policy == "safe" and method in _SAFE_METHODS)

    def cancel(self, running: TrackedRequest) -> None:
        """Cancel a request, whatever its method is."""
        self.threads.keep(running.cancel)
