"""The ``Date`` of responses (RFC 9110, section 6.6.1)."""

from __future__ import annotations

import time
from email.utils import formatdate

# One tuple, so that no thread ever sees one second with the text of another.
_latest = (0, "")


def http_date() -> str:
    """Return the current time in HTTP's format, computed once a second. Either side."""
    global _latest
    now = int(time.time())
    second, text = _latest
    if second != now:
        text = formatdate(now, usegmt=True)
        _latest = (now, text)
    return text
