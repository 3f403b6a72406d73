"""Bounds how fast tokens can be guessed at the operators' port. Loop side."""

from __future__ import annotations

import ipaddress
import logging
import math
import time

from threadbridge.common.repeated_log import RepeatedLog

logger = logging.getLogger("threadbridge")

# So often a client may be wrong without any delay; then it waits a second, and twice as long each time up to a minute.
FREE_MISTAKES = 5
LONGEST_DELAY = 60.0
# Seconds without a mistake after which a client's are forgotten.
FORGOTTEN_AFTER = 15 * 60.0
# Mistakes of all clients together: so many at once, and then one a second.
MISTAKES_AT_ONCE = 50
# Of more clients the oldest are forgotten.
MOST_CLIENTS = 1000

_wrong_token = RepeatedLog(logger)


class Throttle:
    """Counts wrong tokens, by client and in all, and says how long to wait until the next one is looked at."""

    def __init__(self) -> None:
        # For each client how often it was wrong, and when it may try again; the one that was wrong last at the end.
        self._mistakes: dict[str, tuple[int, float]] = {}
        # By when all that were made would be allowed for at one a second.
        self._paid_by = 0.0

    def delay(self, address: str) -> int:
        """Whole seconds until a token from this address is looked at; 0 for now."""
        now = time.monotonic()
        _, again_at = self._mistakes.get(_client(address), (0, 0.0))
        return math.ceil(max(0.0, again_at - now, self._paid_by - now - MISTAKES_AT_ONCE + 1))

    def wrong(self, address: str, where: str) -> None:
        """A wrong token came from this address; ``where`` says how, for the log."""
        now = time.monotonic()
        client = _client(address)
        count, again_at = self._mistakes.pop(client, (0, 0.0))
        if now - again_at > FORGOTTEN_AFTER:
            count = 0
        count += 1
        wait = min(LONGEST_DELAY, 2.0 ** min(count - FREE_MISTAKES - 1, 10)) if count > FREE_MISTAKES else 0.0
        self._mistakes[client] = (count, now + wait)
        if len(self._mistakes) > MOST_CLIENTS:
            del self._mistakes[next(iter(self._mistakes))]
        self._paid_by = max(self._paid_by, now) + 1.0
        _wrong_token.log(logging.WARNING, "operators' port: a wrong token from %s, %s", address or "unix:", where)


def _client(address: str) -> str:
    """One client: an IPv4 address, or an IPv6 network of 64 bits, all of which may be one machine's."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    return str(ipaddress.ip_network((ip, 64), strict=False)) if ip.version == 6 else address
