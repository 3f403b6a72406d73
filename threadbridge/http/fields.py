"""The fields of a request's head in Tornado's `HTTPHeaders`, made and read without its checks. Either side."""

from __future__ import annotations

from typing import Final

from tornado.httputil import HTTPHeaders

# The attributes of `HTTPHeaders` in Tornado 6.5 and later, all empty when it is made. Its constructor and
# `__setitem__` take more instructions than llhttp takes for the whole head.
_COMBINED: Final = "_combined_cache"
_OWN: Final = {"_as_list", _COMBINED} == set(HTTPHeaders().__dict__)
_new: Final = HTTPHeaders.__new__


def headers_of(lines: dict[str, list[str]], combined: dict[str, str]) -> HTTPHeaders:
    """Return headers with these fields.

    :param lines: the valid values of each field, by its name as `HTTPHeaders` spells it; not to be used afterwards.
    :param combined: the values of each field, joined by commas.
    """
    if not _OWN:
        headers = HTTPHeaders()
        for name, values in lines.items():
            for value in values:
                headers.add(name, value)
        return headers
    headers = _new(HTTPHeaders)
    headers._as_list = lines
    headers._combined_cache = combined  # type: ignore[attr-defined,unused-ignore]
    return headers


def lines_of(headers: HTTPHeaders) -> dict[str, list[str]]:
    """Return the values of each field, by its name; only to be read."""
    return headers._as_list
