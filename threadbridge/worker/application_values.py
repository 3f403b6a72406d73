"""What an application gives to the server, checked in PEP 3333's terms. Worker side, except `check_application`."""

from __future__ import annotations

import functools
import inspect
import re
from typing import Any, Final

# RFC 9110: a token (section 5.6.2), a reason phrase (RFC 9112, section 4). Clients treat statuses from 600 on as 5xx
# (section 15).
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+").fullmatch
_STATUS: Final = re.compile(r"([2-9][0-9][0-9])(?: ([\t\x20-\x7e\x80-\xff]*))?").fullmatch

NO_HEAD: Final = "the application did not call start_response before the body"


class ApplicationError(Exception):
    """The application broke PEP 3333; the message says what it did and what was expected."""


def check_application(application: object) -> None:
    """Raise ``ValueError`` if this cannot be called as PEP 3333 says."""
    try:
        signature = inspect.signature(application)  # type: ignore[arg-type]
    except TypeError:
        raise ValueError(f"{application!r} cannot be called; expected a WSGI application") from None
    except ValueError:
        # A callable written in C may have no signature.
        return
    try:
        signature.bind("environ", "start_response")
    except TypeError:
        raise ValueError(
            f"{application!r} is called with {signature}, but a WSGI application with (environ, start_response) "
            "(PEP 3333). If it is a factory, give what it returns (on the command line: MODULE:FACTORY()); ASGI "
            "applications cannot be served"
        ) from None


@functools.lru_cache(maxsize=256)
def parse_status(status: str) -> tuple[int, str]:
    """Check a status and return its number and its reason."""
    match = _STATUS(status)
    if match is None:
        raise ApplicationError(
            f"the status is {status!r}; expected three digits from 200 on, a space and a reason, such as '200 OK'"
        )
    return int(match[1]), match[2] or ""


@functools.lru_cache(maxsize=256)
def checked_name(name: str) -> str:
    """Check a header's name and return it in lower case."""
    if not _TOKEN(name):
        raise ApplicationError(f"header name {name!r} is not a token (RFC 9110, section 5.6.2)")
    return name.lower()


def checked(chunk: Any) -> bytes:
    """Return a piece of the body, after checking that it is bytes."""
    if not isinstance(chunk, bytes):
        raise ApplicationError(f"the body has a {type(chunk).__name__}, {chunk!r:.60}; expected bytes")
    return chunk
