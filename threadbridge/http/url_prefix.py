"""The URL prefix below which clients reach the application: ``SCRIPT_NAME`` (PEP 3333)."""

from __future__ import annotations

import functools
import logging
import re
from typing import Literal, TypeAlias

from tornado.httputil import HTTPHeaders

from threadbridge.common.repeated_log import RepeatedLog

logger = logging.getLogger("threadbridge")

# The header in which a trusted proxy names the prefix.
PrefixHeader: TypeAlias = Literal["none", "x-forwarded-prefix", "x-script-name"]

LONGEST = 256
# Segments without percent signs and dots alone. An empty one, as in //evil.example, would make links lead elsewhere.
_PREFIX = re.compile(r"(?:/(?!\.\.?(?:/|\Z))[A-Za-z0-9._~!$&'()*+;=:@-]+)+").fullmatch


def is_prefix(text: str) -> bool:
    """Whether a text can be a prefix: "" or, such as ``/shop``, a path without a slash at its end."""
    return not text or (len(text) <= LONGEST and _PREFIX(text) is not None)


class UrlPrefix:
    """Divides the path of requests into the prefix and the application's own part. Loop side.

    :param root_path: the prefix of requests for which a proxy names none.
    :param header: in which trusted proxies name another.
    """

    def __init__(self, root_path: str, header: PrefixHeader) -> None:
        self._root_path = root_path
        self._header = "" if header == "none" else "-".join(map(str.capitalize, header.split("-")))
        # Proxies that send this header have removed the prefix: the same text in the path is the application's.
        self._has_been_removed = header == "x-forwarded-prefix"
        self._log = RepeatedLog(logger)
        self._read = functools.lru_cache(maxsize=128)(_last_prefix)

    def split(self, path: str, headers: HTTPHeaders, is_trusted: bool) -> tuple[str, str]:
        """Return ``SCRIPT_NAME`` and ``PATH_INFO`` of a request with this decoded path.

        :param is_trusted: whether a trusted proxy has sent the headers.
        """
        prefix = self._root_path
        if is_trusted and self._header and self._header in headers:
            named = self._read(headers[self._header][-LONGEST - 2 :])
            if named is not None:
                if self._has_been_removed:
                    return named, path
                prefix = named
            else:
                message = "ignored a proxy's %s, which is not a path such as /shop: %r"
                self._log.log(logging.WARNING, message, self._header, headers[self._header][-LONGEST:])
        if prefix and path.startswith(prefix) and path[len(prefix) : len(prefix) + 1] in ("", "/"):
            path = path[len(prefix) :]
        return prefix, path


def _last_prefix(values: str) -> str | None:
    """Return the last of several prefixes, which is the trusted proxy's own; None if it cannot be one."""
    prefix = values.rpartition(",")[2].strip(" \t").removesuffix("/")
    return prefix if is_prefix(prefix) else None
