"""Header fields (RFC 9110, section 5; RFC 9112, section 5), Host, limits, and the names kept from the application."""

from __future__ import annotations

from tests.http_cases.row import Call, Row, accepted, bare, get, post, refused


def seen(**environ: str | None) -> Call:
    """An ordinary GET whose environ has these."""
    return Call(environ=environ)


NAMES: list[Row] = [
    accepted(
        "names in any case",
        "9110 5.1",
        get(b"x-a: 1", b"X-B: 2", b"x-C: 3"),
        seen(HTTP_X_A="1", HTTP_X_B="2", HTTP_X_C="3"),
    ),
    accepted(
        "every character of a token",
        "9110 5.6.2",
        get(b"X!#$%&'*+-.^`|~9: 1"),
        Call(environ={"HTTP_X!#$%&'*+_.^`|~9": "1"}),
    ),
    refused("a space before the colon", "9112 5.1", get(b"X-A : 1")),
    refused("a tab before the colon", "9112 5.1", get(b"X-A\t: 1")),
    refused("an empty name", "9112 5.1", get(b": 1")),
    refused("no colon", "9112 5", get(b"X-A")),
    refused("only a colon", "9112 5.1", get(b":")),
    refused("a space in a name", "9110 5.1", get(b"X A: 1")),
    refused("an at sign in a name", "9110 5.1", get(b"X@A: 1")),
    refused("a parenthesis in a name", "9110 5.1", get(b"X(A: 1")),
    refused("a quote in a name", "9110 5.1", get(b'X"A: 1')),
    refused("a slash in a name", "9110 5.1", get(b"X/A: 1")),
    refused("a brace in a name", "9110 5.1", get(b"X{A: 1")),
    refused("a semicolon in a name", "9110 5.1", get(b"X;A: 1")),
    refused("NUL in a name", "9110 5.1", get(b"X\0A: 1")),
    refused("DEL in a name", "9110 5.1", get(b"X\x7fA: 1")),
    refused("a control character in a name", "9110 5.1", get(b"X\x01A: 1")),
    refused("a byte over 127 in a name", "9110 5.1", get(b"X\xe9A: 1")),
    refused("a space before the first name", "9112 2.2", bare(b"GET / HTTP/1.1", b" X-A: 1", b"Host: example.org")),
    refused("a tab before the first name", "9112 2.2", bare(b"GET / HTTP/1.1", b"\tX-A: 1", b"Host: example.org")),
    refused("a line folded with a space", "9112 5.2", get(b"X-A: 1", b" 2")),
    refused("a line folded with a tab", "9112 5.2", get(b"X-A: 1", b"\t2")),
    refused("a folded line that is empty", "9112 5.2", get(b"X-A: 1", b" ")),
    refused("a folded line behind an empty value", "9112 5.2", get(b"X-A:", b" 1")),
    refused("a folded Transfer-Encoding", "9112 5.2", post(b"Transfer-Encoding:", b" chunked", body=b"0\r\n\r\n")),
    refused("a folded Content-Length", "9112 5.2", post(b"Content-Length:", b" 3", body=b"abc")),
]

VALUES: list[Row] = [
    accepted("no space behind the colon", "9112 5.1", get(b"X-A:1"), seen(HTTP_X_A="1")),
    accepted("white space around a value", "9112 5.1", get(b"X-A: \t 1 2\t \t"), seen(HTTP_X_A="1 2")),
    accepted("a tab in a value", "9110 5.5", get(b"X-A: 1\t2"), seen(HTTP_X_A="1\t2")),
    accepted("an empty value", "9110 5.5", get(b"X-A:", b"X-B: 2"), seen(HTTP_X_A="", HTTP_X_B="2")),
    accepted("a value of white space", "9110 5.5", get(b"X-A: \t "), seen(HTTP_X_A="")),
    accepted("colons in a value", "9112 5", get(b"X-A: a:b: c"), seen(HTTP_X_A="a:b: c")),
    accepted("bytes over 127 in a value", "9110 5.5", get(b"X-A: caf\xe9 \xff\x80"), seen(HTTP_X_A="caf\xe9 \xff\x80")),
    accepted("a quoted string", "9110 5.6.4", get(b'X-A: "a, \\"b\\""'), seen(HTTP_X_A='"a, \\"b\\""')),
    accepted(
        "a field given twice", "9110 5.3", get(b"X-A: 1", b"X-B: 2", b"x-a: 3"), seen(HTTP_X_A="1,3", HTTP_X_B="2")
    ),
    refused("Content-Type twice", "9110 8.3", post(b"Content-Type: a/b", b"Content-Type: c/d")),
    refused("Content-Type twice, equal", "9110 5.3", post(b"Content-Type: a/b", b"content-type: a/b")),
    accepted("8000 bytes of value", "9110 5.4", get(b"X-A: " + b"a" * 8000), seen(HTTP_X_A="a" * 8000)),
    accepted("50 fields", "9110 5.4", get(*(b"X-%d: 1" % number for number in range(50))), seen(HTTP_X_49="1")),
    refused("NUL in a value", "9110 5.5", get(b"X-A: 1\x002")),
    refused("NUL alone", "9110 5.5", get(b"X-A: \0")),
    refused("a bare CR in a value", "9112 2.2", get(b"X-A: 1\r2")),
    refused("a bare CR before the value", "9112 2.2", get(b"X-A:\r 1")),
    refused("a bare LF in a value", "9112 2.2", get(b"X-A: 1\n2")),
    refused("a header smuggled behind LF", "9112 2.2", get(b"X-A: 1\nX-B: 2")),
    refused("SOH in a value", "9110 5.5", get(b"X-A: 1\x012")),
    refused("a backspace in a value", "9110 5.5", get(b"X-A: 1\x082")),
    refused("a vertical tab in a value", "9110 5.5", get(b"X-A: \x0b1")),
    refused("a form feed in a value", "9110 5.5", get(b"X-A: 1\x0c")),
    refused("ESC in a value", "9110 5.5", get(b"X-A: \x1b[31m")),
    refused("DEL in a value", "9110 5.5", get(b"X-A: 1\x7f2")),
]

HOSTS: list[Row] = [
    accepted(
        "Host with a port",
        "9110 7.2",
        bare(b"GET / HTTP/1.1", b"Host: a.example:81"),
        seen(HTTP_HOST="a.example:81", SERVER_PORT="81"),
    ),
    accepted(
        "Host with an empty port",
        "3986 3.2.3",
        bare(b"GET / HTTP/1.1", b"Host: a.example:"),
        seen(HTTP_HOST="a.example:", SERVER_PORT="80"),
    ),
    accepted(
        "Host is an IPv6 address",
        "3986 3.2.2",
        bare(b"GET / HTTP/1.1", b"Host: [2001:db8::1]:81"),
        seen(SERVER_NAME="[2001:db8::1]", SERVER_PORT="81"),
    ),
    accepted(
        "Host is an IPv4 address",
        "3986 3.2.2",
        bare(b"GET / HTTP/1.1", b"Host: 127.0.0.1"),
        seen(SERVER_NAME="127.0.0.1"),
    ),
    accepted(
        "Host with an underscore",
        "3986 3.2.2",
        bare(b"GET / HTTP/1.1", b"Host: my_service"),
        seen(SERVER_NAME="my_service"),
    ),
    accepted("an empty Host", "9110 7.2", bare(b"GET / HTTP/1.1", b"Host:"), seen(HTTP_HOST="")),
    accepted("HTTP/1.0 without Host", "9112 3.2", bare(b"GET / HTTP/1.0"), seen(HTTP_HOST=None), closes=True),
    refused("HTTP/1.1 without Host", "9112 3.2", bare(b"GET / HTTP/1.1")),
    refused("no Host, but other fields", "9112 3.2", bare(b"GET / HTTP/1.1", b"X-A: 1", b"Hosts: a")),
    refused("Host twice, different", "9112 3.2", get(b"Host: other.example")),
    refused("Host twice, equal", "9112 3.2", get(b"Host: example.org")),
    refused("Host twice, in lower case", "9112 3.2", get(b"host: other.example")),
    refused("Host twice, HTTP/1.0", "9112 3.2", bare(b"GET / HTTP/1.0", b"Host: a", b"Host: b")),
    accepted(
        "Host with encoded bytes", "3986 3.2.2", bare(b"GET / HTTP/1.1", b"Host: a%C3%a9"), seen(HTTP_HOST="a%C3%a9")
    ),
    refused("Host with a bare per cent sign", "9112 3.2", bare(b"GET / HTTP/1.1", b"Host: a%")),
    refused("Host with half an encoded byte", "9112 3.2", bare(b"GET / HTTP/1.1", b"Host: a%4")),
    refused("Host with letters behind a per cent sign", "9112 3.2", bare(b"GET / HTTP/1.1", b"Host: %zz")),
    refused("Host of 60 kB, and no host", "9112 3.2", bare(b"GET / HTTP/1.1", b"Host: " + b"a" * 60_000 + b"%")),
    refused("Host with a space", "9112 3.2", bare(b"GET / HTTP/1.1", b"Host: a b")),
    refused("Host with a slash", "9112 3.2", bare(b"GET / HTTP/1.1", b"Host: a/b")),
    refused("Host with a scheme", "9112 3.2", bare(b"GET / HTTP/1.1", b"Host: http://a")),
    refused("Host with a user", "9112 3.2", bare(b"GET / HTTP/1.1", b"Host: u@a")),
    refused("Host is a list", "9112 3.2", bare(b"GET / HTTP/1.1", b"Host: a, b")),
    refused("Host with a query", "9112 3.2", bare(b"GET / HTTP/1.1", b"Host: a?b")),
    refused("Host with a fragment", "9112 3.2", bare(b"GET / HTTP/1.1", b"Host: a#b")),
    refused("Host with a backslash", "9112 3.2", bare(b"GET / HTTP/1.1", b"Host: a\\b")),
    refused("Host with a port that is no number", "9112 3.2", bare(b"GET / HTTP/1.1", b"Host: a:b")),
    refused("Host with two ports", "9112 3.2", bare(b"GET / HTTP/1.1", b"Host: a:80:81")),
    refused("Host with an open bracket", "9112 3.2", bare(b"GET / HTTP/1.1", b"Host: [::1")),
    refused("Host with a byte over 127", "9112 3.2", bare(b"GET / HTTP/1.1", b"Host: caf\xe9")),
    refused("Host with quotes", "9112 3.2", bare(b"GET / HTTP/1.1", b'Host: "a"')),
]

# Names that would pass for others in the environ, where "-" becomes "_" and HTTP_PROXY is a setting of HTTP clients.
HIDDEN: list[Row] = [
    accepted("an underscore in a name", "PEP 3333", get(b"X_A: 1"), seen(HTTP_X_A=None)),
    accepted("an underscore beside the true one", "PEP 3333", get(b"X_A: 1", b"X-A: 2", b"X_A: 3"), seen(HTTP_X_A="2")),
    accepted(
        "Content_Length", "9110 8.6", get(b"Content_Length: 5"), seen(CONTENT_LENGTH=None, HTTP_CONTENT_LENGTH=None)
    ),
    accepted("Transfer_Encoding", "9112 6.1", get(b"Transfer_Encoding: chunked"), seen(HTTP_TRANSFER_ENCODING=None)),
    accepted("Content_Type", "PEP 3333", get(b"Content_Type: a/b"), seen(CONTENT_TYPE=None, HTTP_CONTENT_TYPE=None)),
    accepted("Proxy", "3875 4.1.18", get(b"Proxy: http://evil.example"), seen(HTTP_PROXY=None)),
    accepted("PROXY", "3875 4.1.18", get(b"PROXY: http://evil.example"), seen(HTTP_PROXY=None)),
    accepted("proxy", "3875 4.1.18", get(b"proxy: http://evil.example"), seen(HTTP_PROXY=None)),
]

LIMITS: list[Row] = [
    refused("a header of 200 kB", "6585 5", get(b"X-A: " + b"a" * 200_000), 431),
    refused("a header name of 200 kB", "6585 5", get(b"a" * 200_000 + b": 1"), 431),
    refused("headers of 200 kB together", "6585 5", get(*[b"X-A: " + b"a" * 1000] * 200), 431),
    refused("50,000 headers", "6585 5", get(*[b"a:b"] * 50_000), 431),
    refused("a header without an end", "6585 5", b"GET / HTTP/1.1\r\nHost: a\r\nX-A: " + b"a" * 300_000, 431),
    refused("a value of 200 kB of white space", "6585 5", get(b"X-A:" + b" " * 200_000), 431),
    refused("empty lines without an end", "9112 2.2", b"\r\n" * 150_000),
]

ROWS: list[Row] = [*NAMES, *VALUES, *HOSTS, *HIDDEN, *LIMITS]
