"""The rules of RFC 9110 and 9112 for the head of a request, as far as llhttp does not enforce them."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus

from tornado.httputil import HTTPHeaders

from threadbridge.http.bad_request import BadRequest

# RFC 3986, sections 3.2.2 and 3.2.3: reg-name or IP-literal, and a port. Empty is allowed (RFC 9110, section 7.2).
_HOST = re.compile(r"(?:(?:[A-Za-z0-9._~!$&'()*+,;=-]++|%[0-9A-Fa-f]{2})*+|\[[0-9A-Fa-f:.]+\])(?::[0-9]*)?").fullmatch
_METHOD = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]*+")
_ABSOLUTE_FORM = re.compile(r"https?://([^/?]+)(.*)", re.IGNORECASE).fullmatch
# Fields with one value, which proxies pass on even if they come twice (RFC 9110, sections 5.3 and 8.3).
_SINGLE = frozenset({"Content-Type"})

MAX_METHOD = 32
# As many as Apache's LimitRequestFields and gunicorn's limit_request_fields.
MAX_HEADERS = 100
# Names are kept in caches, here, in Tornado and for the environ, which must not grow with what clients send.
MAX_NAME = 256


def check_field(name: bytes, count: int) -> None:
    """Check the length of a header's name, and how many headers there are with it."""
    if len(name) > MAX_NAME:
        raise BadRequest(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"a header name has more than {MAX_NAME} bytes")
    if count > MAX_HEADERS:
        raise BadRequest(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"more than {MAX_HEADERS} headers")


def combine(fields: Sequence[tuple[bytes, bytes]], headers: HTTPHeaders) -> dict[str, str]:
    """Add the fields to ``headers``; returns the values that `HTTPHeaders.get` would give."""
    combined: dict[str, str] = {}
    for name, value in fields:
        field, text = _field_name(name), value.decode("latin-1").rstrip("\t ")
        # `HTTPHeaders.add` would check again what llhttp has checked.
        if field in combined:
            if field == "Host":
                raise BadRequest(HTTPStatus.BAD_REQUEST, "several Host headers; expected one (RFC 9112, section 3.2)")
            if field in _SINGLE:
                raise BadRequest(HTTPStatus.BAD_REQUEST, f"several {field} headers; expected one")
            headers.add(field, text)
            combined[field] += "," + text
        else:
            headers[field] = combined[field] = text
    return combined


def version_of(head: bytes, method: str, target: bytes) -> str:
    """Return the version by which the request is read: a higher minor one counts as 1.1 (RFC 9110, section 2.5).

    Refuses request lines that llhttp accepts out of leniency: other protocols, more than one space, LF in front.
    """
    # One empty line in front is allowed: RFC 9112, section 2.2.
    start = 2 if head.startswith(b"\r\n") else 0
    # Where the version must be if there is one space between the parts.
    position = start + len(method) + 1 + len(target)
    sent = head[position : position + len(" HTTP/1.1\r\n")]
    if sent == b" HTTP/1.1\r\n":
        return "1.1"
    if not (sent.startswith(b" HTTP/") and sent.endswith(b"\r\n")):
        raise BadRequest(HTTPStatus.BAD_REQUEST, "the request line is malformed (RFC 9112, section 3)")
    version = sent[6:9]
    if not version.startswith(b"1."):
        shown = version.decode("latin-1")
        raise BadRequest(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, f"HTTP/{shown}; expected HTTP/1.1 or HTTP/1.0")
    return "1.0" if version == b"1.0" else "1.1"


def check_host(host: str) -> None:
    """Check the value of a ``Host`` header (RFC 9112, section 3.2)."""
    if not _HOST(host):
        raise BadRequest(HTTPStatus.BAD_REQUEST, "the Host header is not a valid host (RFC 9112, section 3.2)")


def check_transfer_coding(coding: str, version: str) -> None:
    """Check the value of a ``Transfer-Encoding`` header (RFC 9112, section 6.1)."""
    if version == "1.0":
        raise BadRequest(HTTPStatus.BAD_REQUEST, "Transfer-Encoding is not allowed in HTTP/1.0 (RFC 9112, section 6.1)")
    if coding.lower() != "chunked":
        raise BadRequest(HTTPStatus.NOT_IMPLEMENTED, "the only supported transfer coding is chunked")


def expects_continue(headers: Mapping[str, str], version: str) -> bool:
    """Whether the client waits for a 100 before it sends the body (RFC 9110, section 10.1.1)."""
    expect = headers.get("Expect", "")
    if not expect or version != "1.1":
        return False
    if expect.lower() != "100-continue":
        raise BadRequest(HTTPStatus.EXPECTATION_FAILED, "the only supported Expect is 100-continue")
    return True


@functools.lru_cache(maxsize=1000)
def _field_name(name: bytes) -> str:
    """Return a header's name, in the case that `HTTPHeaders` gives it; cached, since clients send the same few."""
    return "-".join(word.capitalize() for word in name.decode("ascii").split("-"))


def end_of_method(head: bytes, start: int) -> int:
    """Return where the method of a request line ends; -1 while more of it may arrive."""
    match = _METHOD.match(head, start)
    assert match is not None
    end = match.end()
    method = head[start:end]
    if len(method) > MAX_METHOD:
        raise BadRequest(HTTPStatus.NOT_IMPLEMENTED, f"the method has more than {MAX_METHOD} characters")
    if end == len(head):
        return -1
    if not method or head[end : end + 1] != b" ":
        raise BadRequest(HTTPStatus.BAD_REQUEST, "the request line does not begin with a method (RFC 9112, section 3)")
    if method == b"CONNECT":
        raise BadRequest(HTTPStatus.NOT_IMPLEMENTED, "CONNECT is not supported: this server is not a proxy")
    if method != method.upper():
        # Werkzeug and Django would treat "get" as GET, unlike this server and proxies.
        raise BadRequest(HTTPStatus.NOT_IMPLEMENTED, "lower-case methods are not supported (RFC 9110, section 9.1)")
    return end


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
        raise BadRequest(HTTPStatus.BAD_REQUEST, "the request target contains a fragment (#)")
    if target.startswith("/") or (target == "*" and method == "OPTIONS"):
        return target
    absolute = _ABSOLUTE_FORM(target)
    if absolute is None or not _HOST(absolute[1]):
        raise BadRequest(HTTPStatus.BAD_REQUEST, "the request target is neither a path nor an http or https URL")
    headers["Host"] = absolute[1]
    return absolute[2] if absolute[2].startswith("/") else "/" + absolute[2]
