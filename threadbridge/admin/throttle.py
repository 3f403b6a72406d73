"""Limits how fast tokens can be guessed at the operators' port."""

from __future__ import annotations

import logging
import math
import time

from threadbridge.common.repeated_log import RepeatedLog
from threadbridge.http.forwarded import client_of

logger = logging.getLogger("threadbridge")

# Mistakes of one client without delay. Each further one doubles the delay, from one second up to a minute.
FREE_MISTAKES = 5
LONGEST_DELAY = 60.0
# Seconds without a mistake after which a client starts from zero.
FORGOTTEN_AFTER = 15 * 60.0
# Mistakes of all clients together without delay; then one a second.
MISTAKES_AT_ONCE = 50
# Clients remembered; beyond that the one whose latest mistake is oldest is forgotten.
MOST_CLIENTS = 1000

_wrong_token = RepeatedLog(logger)


class Throttle:
    """Counts wrong tokens, per client and in total, and derives how long a client must wait before its next attempt."""

    def __init__(self) -> None:
        # For each client the number of mistakes, and when it may try again; in the order of the latest mistakes.
        self._mistakes: dict[str, tuple[int, float]] = {}
        # When all mistakes so far would be allowed at a rate of one a second.
        self._paid_by = 0.0

    def delay(self, address: str) -> int:
        """Seconds, rounded up, until a token from this address is checked; 0 if it is checked now."""
        now = time.monotonic()
        _, again_at = self._mistakes.get(client_of(address), (0, 0.0))
        return math.ceil(max(0.0, again_at - now, self._paid_by - now - MISTAKES_AT_ONCE + 1))

    def wrong(self, address: str, source: str) -> None:
        """Count and log a wrong token from this address; the source is the part of the request that it was in."""
        now = time.monotonic()
        client = client_of(address)
        count, again_at = self._mistakes.pop(client, (0, 0.0))
        count = count + 1 if now - again_at <= FORGOTTEN_AFTER else 1
        wait = min(LONGEST_DELAY, 2.0 ** min(count - FREE_MISTAKES - 1, 10)) if count > FREE_MISTAKES else 0.0
        self._mistakes[client] = (count, now + wait)
        if len(self._mistakes) > MOST_CLIENTS:
            del self._mistakes[next(iter(self._mistakes))]
        self._paid_by = max(self._paid_by, now) + 1.0
        _wrong_token.log(logging.WARNING, "operators' port: a wrong token from %s, %s", address, source)
