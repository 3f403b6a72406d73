"""The comments in statements that name their request and its trace. Worker side."""

from __future__ import annotations

import re
from typing import Any

from threadbridge.crossing.current import current_or_none

# Characters that could end the comment that names a request, or be a parameter's placeholder in it.
_NOT_IN_TAG = re.compile(r"[^A-Za-z0-9._:-]")


def tagged(sql: Any) -> Any:
    """The statement with the comments of the request that this thread serves; objects of a driver as they are.

    The request's id comes first, since lists of statements show only their beginning. If the request is recorded,
    the statement's span comes last, as sqlcommenter writes it: before a semicolon, and only if there is no comment yet.
    https://google.github.io/sqlcommenter/spec/
    """
    request = current_or_none()
    if request is None or not isinstance(sql, (str, bytes, bytearray)):
        return sql
    traceparent = "" if request.trace is None else request.trace.current_traceparent
    named = followed_by(f" /*traceparent='{traceparent}'*/", sql) if traceparent else sql
    return preceded_by(f"/* {_NOT_IN_TAG.sub('', request.id)} */ ", named)


def preceded_by(comment: str, sql: Any) -> Any:
    """The statement behind the comment."""
    if isinstance(sql, str):
        return comment + sql
    return comment.encode() + sql if isinstance(sql, (bytes, bytearray)) else sql


def followed_by(comment: str, sql: str | bytes | bytearray) -> str | bytes:
    """The statement before the comment, unless there is one in it already, perhaps sqlcommenter's own."""
    if not isinstance(sql, str):
        # Each character is a byte.
        return str(followed_by(comment, sql.decode("latin-1"))).encode("latin-1")
    if "/*" in sql or "--" in sql:
        return sql
    # Not all white space: in latin-1 that includes bytes of other characters.
    text = sql.rstrip(" \t\r\n")
    return f"{text[:-1]}{comment};" if text.endswith(";") else text + comment
