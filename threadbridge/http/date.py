"""The ``Date`` of responses (RFC 9110, section 6.6.1)."""

from __future__ import annotations

import time
from email.utils import formatdate

# One tuple, so that a thread never sees a second with another's text.
_latest = (0, "")


def http_date() -> str:
    """The time now as HTTP writes it; the text is made once a second. Either side."""
    global _latest
    now = int(time.time())
    second, text = _latest
    if second != now:
        text = formatdate(now, usegmt=True)
        _latest = (now, text)
    return text
