"""Rules of RFC 9110 and 9112 for the head of a request that llhttp does not enforce, and the refusal of a request."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from http.client import responses as phrases
from typing import Final

from tornado.httputil import HTTPHeaders

from threadbridge.http.response_head import NEVER_RAN, http_date, response_head

# RFC 3986, sections 3.2.2 and 3.2.3: reg-name or IP-literal, and a port. Empty is allowed (RFC 9110, section 7.2).
_HOST: Final = re.compile(
    r"(?:(?:[A-Za-z0-9._~!$&'()*+,;=-]++|%[0-9A-Fa-f]{2})*+|\[[0-9A-Fa-f:.]+\])(?::[0-9]*)?"
).fullmatch
_METHOD: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]*+").match
_ABSOLUTE_FORM: Final = re.compile(r"https?://([^/?]+)(.*)", re.IGNORECASE).fullmatch
# Fields with one value, which proxies pass on even if they come twice (RFC 9110, sections 5.3 and 8.3).
_SINGLE: Final = frozenset({"Content-Type"})

MAX_METHOD: Final = 32
# As many as Apache's LimitRequestFields and gunicorn's limit_request_fields.
MAX_HEADERS: Final = 100
# Names are kept in caches, here, in Tornado and for the environ, which must not grow with what clients send.
MAX_NAME: Final = 256


class BadRequest(Exception):
    """The request cannot be accepted: ``status`` answers it, and the connection closes."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason
        self.body = f"{status} {phrases[status]}: {reason}\n".encode()

    @property
    def response(self) -> bytes:
        """The whole response."""
        fields = [("Content-Type", "text/plain; charset=utf-8"), ("Date", http_date()), ("Connection", "close")]
        if self.status == 503:
            fields += [("Retry-After", "1"), NEVER_RAN]
        head = response_head(self.status, phrases[self.status], fields, len(self.body))
        return head.lines + b"\r\n" + self.body


TOO_MANY_CONNECTIONS: Final = BadRequest(503, "too many connections")


def too_large(max_body_size: int) -> BadRequest:
    """Return the refusal of a body larger than ``max_body_size``."""
    return BadRequest(413, f"the body is larger than the limit of {max_body_size} bytes")


def combine(fields: Sequence[tuple[bytes, bytes]], lines: dict[str, list[str]]) -> dict[str, str]:
    """Add the values of each field to ``lines``; returns them joined by commas, as `HTTPHeaders.get` would."""
    combined: dict[str, str] = {}
    for name, value in fields:
        if len(name) > MAX_NAME:
            raise BadRequest(431, f"a header name has more than {MAX_NAME} bytes")
        field, text = _field_name(name), value.decode("latin-1").rstrip("\t ")
        if field in combined:
            if field == "Host":
                raise BadRequest(400, "several Host headers; expected one (RFC 9112, section 3.2)")
            if field in _SINGLE:
                raise BadRequest(400, f"several {field} headers; expected one")
            lines[field].append(text)
            combined[field] += "," + text
        else:
            lines[field] = [text]
            combined[field] = text
    return combined


@functools.lru_cache(maxsize=1000)
def _field_name(name: bytes) -> str:
    """Return a header's name in the case that `HTTPHeaders` gives it; cached, since clients send the same few."""
    return "-".join(word.capitalize() for word in name.decode("ascii").split("-"))


def version_of(head: bytes, method: str, target: bytes) -> str:
    """Return "1.0" or "1.1"; a higher minor version counts as 1.1 (RFC 9110, section 2.5).

    Refuses request lines that llhttp accepts out of leniency: other protocols, and more than one space.
    """
    # Where the version must be if there is one space between the parts.
    position = len(method) + 1 + len(target)
    sent = head[position : position + len(" HTTP/1.1\r\n")]
    if sent == b" HTTP/1.1\r\n":
        return "1.1"
    if not (sent.startswith(b" HTTP/") and sent.endswith(b"\r\n")):
        raise BadRequest(400, "the request line is malformed (RFC 9112, section 3)")
    version = sent[6:9]
    if not version.startswith(b"1."):
        raise BadRequest(505, f"HTTP/{version.decode('latin-1')}; expected HTTP/1.1 or HTTP/1.0")
    return "1.0" if version == b"1.0" else "1.1"


def check_host(host: str) -> None:
    """Refuse an invalid ``Host`` header (RFC 9112, section 3.2)."""
    if not _HOST(host):
        raise BadRequest(400, "the Host header is not a valid host (RFC 9112, section 3.2)")


def check_transfer_coding(coding: str, version: str) -> None:
    """Refuse any ``Transfer-Encoding`` but ``chunked`` (RFC 9112, section 6.1)."""
    if version == "1.0":
        raise BadRequest(400, "Transfer-Encoding is not allowed in HTTP/1.0 (RFC 9112, section 6.1)")
    if "chunked" in [word.strip("\t ") for word in coding.lower().split(",")[:-1]]:
        raise BadRequest(400, "chunked is not the last transfer coding (RFC 9112, section 6.3)")
    if coding.lower() != "chunked":
        raise BadRequest(501, "the only supported transfer coding is chunked")


def expects_continue(headers: Mapping[str, str], version: str) -> bool:
    """Whether the client waits for a 100 response before it sends the body (RFC 9110, section 10.1.1)."""
    expect = headers.get("Expect", "")
    if not expect or version != "1.1":
        return False
    if expect.lower() != "100-continue":
        raise BadRequest(417, "the only supported Expect is 100-continue")
    return True


def method_of(head: bytes) -> str:
    """Return the method with which a head begins; "" while more of it may arrive."""
    match = _METHOD(head, 0, MAX_METHOD + 1)
    assert match is not None
    end = match.end()
    method = match[0]
    if len(method) > MAX_METHOD:
        raise BadRequest(501, f"the method has more than {MAX_METHOD} characters")
    if end == len(head):
        return ""
    if not method or head[end : end + 1] != b" ":
        raise BadRequest(400, "the request line does not begin with a method (RFC 9112, section 3)")
    if method == b"CONNECT":
        raise BadRequest(501, "CONNECT is not supported: this server is not a proxy")
    if method != method.upper():
        # Werkzeug and Django would treat "get" as GET; this server and proxies would not.
        raise BadRequest(501, "lower-case methods are not supported (RFC 9110, section 9.1)")
    return method.decode("ascii")


def keeps_alive(headers: Mapping[str, str], version: str) -> bool:
    """Whether the connection stays open after the response (RFC 9112, section 9.3)."""
    connection = headers.get("Connection")
    if connection is None:
        return version == "1.1"
    options = [option.strip("\t ") for option in connection.lower().split(",")]
    return "close" not in options and (version == "1.1" or "keep-alive" in options)


def origin_form(method: str, target: str, headers: HTTPHeaders) -> str:
    """Return the target as path and query (RFC 9112, section 3.2); an absolute one's authority becomes the Host."""
    if "#" in target:
        raise BadRequest(400, "the request target contains a fragment (#)")
    if target.startswith("/") or (target == "*" and method == "OPTIONS"):
        return target
    absolute = _ABSOLUTE_FORM(target)
    if absolute is None or not _HOST(absolute[1]):
        raise BadRequest(400, "the request target is neither a path nor an http or https URL")
    headers["Host"] = absolute[1]
    return absolute[2] if absolute[2].startswith("/") else "/" + absolute[2]
