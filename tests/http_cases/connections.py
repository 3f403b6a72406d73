"""What becomes of the connection (RFC 9112, section 9), pipelining, 100-continue, and how responses are framed."""

from __future__ import annotations

from tests.http_cases.row import Call, Row, accepted, chunked, get, get_1_0, post, refused, with_line

ABC = Call("POST", body=b"abc")
EXPECT = b"Expect: 100-continue"

PERSISTENCE: list[Row] = [
    accepted("HTTP/1.1 stays open", "9112 9.3", get()),
    accepted("close", "9112 9.6", get(b"Connection: close"), closes=True, answer={"Connection": "close"}),
    accepted("Close", "9110 7.6.1", get(b"Connection: Close"), closes=True),
    accepted("close in a list", "9110 7.6.1", get(b"Connection: TE,close"), closes=True),
    accepted(
        "close in the second of two fields", "9110 5.3", get(b"Connection: TE", b"Connection: close"), closes=True
    ),
    accepted("close wins over keep-alive", "9112 9.3", get(b"Connection: keep-alive, close"), closes=True),
    accepted("keep-alive of HTTP/1.1", "9112 9.3", get(b"Connection: keep-alive")),
    accepted("a word that begins like close", "9110 7.6.1", get(b"Connection: closed")),
    accepted("HTTP/1.0 closes", "9112 9.3", get_1_0(), closes=True),
    accepted(
        "HTTP/1.0 keep-alive", "9112 9.3", get_1_0(b"Connection: keep-alive"), answer={"Connection": "keep-alive"}
    ),
    accepted(
        "HTTP/1.0 Keep-Alive", "9112 9.3", get_1_0(b"Connection: Keep-Alive"), answer={"Connection": "keep-alive"}
    ),
    accepted(
        "HTTP/1.0 keep-alive in a list",
        "9112 9.3",
        get_1_0(b"Connection: TE, keep-alive"),
        answer={"Connection": "keep-alive"},
    ),
    accepted("HTTP/1.0 keep-alive and close", "9112 9.3", get_1_0(b"Connection: keep-alive, close"), closes=True),
    accepted("HTTP/1.0 with Keep-Alive as a field", "9112 C.2.2", get_1_0(b"Keep-Alive: timeout=5"), closes=True),
    accepted("HTTP/1.0 with Proxy-Connection", "9112 C.2.2", get_1_0(b"Proxy-Connection: keep-alive"), closes=True),
    accepted("HTTP/1.1 with Proxy-Connection", "9112 C.2.2", get(b"Proxy-Connection: close")),
    accepted(
        "HTTP/1.0 HEAD keep-alive", "9112 9.3", with_line(b"HEAD / HTTP/1.0", b"Connection: keep-alive"), Call("HEAD")
    ),
    accepted(
        "HTTP/1.0 POST keep-alive",
        "9112 9.3",
        with_line(b"POST / HTTP/1.0", b"Connection: keep-alive", b"Content-Length: 3") + b"abc",
        ABC,
    ),
    accepted(
        "HTTP/1.0 with a body",
        "9112 6.3",
        with_line(b"POST / HTTP/1.0", b"Content-Length: 3") + b"abc",
        ABC,
        closes=True,
    ),
    accepted(
        "close behind a body",
        "9112 9.6",
        post(b"Connection: close", b"Content-Length: 3", body=b"abc"),
        ABC,
        closes=True,
    ),
]

PIPELINING: list[Row] = [
    accepted(
        "three GETs",
        "9112 9.3.2",
        get(path=b"/1") + get(path=b"/2") + get(path=b"/3"),
        Call(path="/1"),
        Call(path="/2"),
        Call(path="/3"),
    ),
    accepted("fifty GETs", "9112 9.3.2", get() * 50, *[Call()] * 50),
    accepted(
        "a POST, then a GET",
        "9112 9.3.2",
        post(b"Content-Length: 3", body=b"abc") + get(path=b"/2"),
        ABC,
        Call(path="/2"),
    ),
    accepted(
        "chunks, then a GET", "9112 9.3.2", chunked(b"3\r\nabc\r\n0\r\n\r\n") + get(path=b"/2"), ABC, Call(path="/2")
    ),
    accepted(
        "a line end too much behind a POST",
        "9112 2.2",
        post(b"Content-Length: 3", body=b"abc") + b"\r\n" + get(path=b"/2"),
        ABC,
        Call(path="/2"),
    ),
    accepted(
        "HEAD, then a GET",
        "9110 9.3.2",
        with_line(b"HEAD /1 HTTP/1.1") + get(path=b"/2"),
        Call("HEAD", "/1"),
        Call(path="/2"),
    ),
    accepted(
        "HEAD of a stream, then a GET",
        "9110 9.3.2",
        with_line(b"HEAD /stream HTTP/1.1") + get(path=b"/2"),
        Call("HEAD", "/stream"),
        Call(path="/2"),
    ),
    accepted("204, then a GET", "9110 15.3.5", get(path=b"/204") + get(path=b"/2"), Call(path="/204"), Call(path="/2")),
    accepted("304, then a GET", "9110 15.4.5", get(path=b"/304") + get(path=b"/2"), Call(path="/304"), Call(path="/2")),
    accepted(
        "a stream, then a GET",
        "9112 7.1",
        get(path=b"/stream") + get(path=b"/2"),
        Call(path="/stream"),
        Call(path="/2"),
    ),
    accepted(
        "a GET behind close",
        "9112 9.6",
        get(b"Connection: close", path=b"/1") + get(path=b"/2"),
        Call(path="/1"),
        closes=True,
    ),
    accepted(
        "a GET behind a POST with close",
        "9112 9.6",
        post(b"Connection: close", b"Content-Length: 3", body=b"abc") + get(),
        ABC,
        closes=True,
    ),
    accepted("a bad one behind close", "9112 9.6", get(b"Connection: close") + b"garbage\r\n\r\n", closes=True),
    accepted("a GET behind HTTP/1.0", "9112 9.6", get_1_0(path=b"/1") + get(path=b"/2"), Call(path="/1"), closes=True),
    accepted(
        "a GET behind HTTP/1.0 keep-alive",
        "9112 9.3",
        get_1_0(b"Connection: keep-alive", path=b"/1") + get(path=b"/2"),
        Call(path="/1"),
        Call(path="/2"),
    ),
    refused(
        "a bad one behind good ones",
        "9112 9.3.2",
        get(path=b"/1") + get(path=b"/2") + b"garbage\r\n\r\n",
        after=(Call(path="/1"), Call(path="/2")),
    ),
    refused(
        "a body longer than its length",
        "9112 6.3",
        post(b"Content-Length: 3", body=b"abcd") + get(),
        501,
        after=(ABC,),
    ),
    refused("LF behind a good request", "9112 2.2", get() + b"\n" + get(), after=(Call(),)),
    refused("two line ends too much", "9112 2.2", get() + b"\r\n\r\n" + get(), after=(Call(),)),
    refused("LF behind a body", "9112 2.2", post(b"Content-Length: 3", body=b"abc") + b"\n" + get(), after=(ABC,)),
    refused("LF behind chunks", "9112 2.2", chunked(b"3\r\nabc\r\n0\r\n\r\n") + b"\n" + get(), after=(ABC,)),
    refused("two spaces in a second request", "9112 3", get() + get(path=b" /"), after=(Call(),)),
    refused(
        "another protocol in a second request, HTTP in a header",
        "9112 2.3",
        get() + with_line(b"GET / RTSP/1.0", b"X-A: GET / HTTP/1.0"),
        after=(Call(),),
    ),
    refused("bad chunks behind a good request", "9112 7.1", get() + chunked(b"x\r\n"), after=(Call(),)),
    refused("bytes behind the last chunk", "9112 7.1", chunked(b"3\r\nabc\r\n0\r\n\r\nx") + get(), 501, after=(ABC,)),
    refused("a missing Host behind a good request", "9112 3.2", get() + b"GET / HTTP/1.1\r\n\r\n", after=(Call(),)),
    refused(
        "too long a body behind a good request",
        "9110 15.5.14",
        get() + post(b"Content-Length: 1073741825"),
        413,
        after=(Call(),),
    ),
]

CONTINUE: list[Row] = [
    accepted("100-continue", "9110 10.1.1", post(EXPECT, b"Content-Length: 3"), ABC, then=b"abc", interim=(1,)),
    accepted(
        "100-Continue",
        "9110 10.1.1",
        post(b"Expect: 100-Continue", b"Content-Length: 3"),
        ABC,
        then=b"abc",
        interim=(1,),
    ),
    accepted(
        "100-continue and chunks",
        "9110 10.1.1",
        post(EXPECT, b"Transfer-Encoding: chunked"),
        ABC,
        then=b"3\r\nabc\r\n0\r\n\r\n",
        interim=(1,),
    ),
    accepted(
        "100-continue and close",
        "9110 10.1.1",
        post(EXPECT, b"Content-Length: 3", b"Connection: close"),
        ABC,
        then=b"abc",
        interim=(1,),
        closes=True,
    ),
    accepted(
        "100-continue, but the body comes along",
        "9110 10.1.1",
        post(EXPECT, b"Content-Length: 3", body=b"abc"),
        ABC,
        interim=(0, 1),
    ),
    accepted(
        "100-continue behind another request",
        "9110 10.1.1",
        get(path=b"/1") + post(EXPECT, b"Content-Length: 3"),
        Call(path="/1"),
        ABC,
        then=b"abc",
        interim=(1,),
    ),
    accepted("100-continue without a body", "9110 10.1.1", get(EXPECT), interim=(0, 1)),
    accepted(
        "100-continue of HTTP/1.0",
        "9110 10.1.1",
        with_line(b"POST / HTTP/1.0", EXPECT, b"Content-Length: 3") + b"abc",
        ABC,
        closes=True,
    ),
    accepted("no 100 unless asked for", "9110 10.1.1", post(b"Content-Length: 3", body=b"abc"), ABC),
    refused("an expectation with control characters", "9110 10.1.1", get(b"Expect: \x85\x9b31m"), 417),
    refused("another expectation", "9110 10.1.1", post(b"Expect: a-miracle", b"Content-Length: 3", body=b"abc"), 417),
    refused("100-continue with too long a body", "9110 10.1.1", post(EXPECT, b"Content-Length: 1073741825"), 413),
    refused("100-continue with a bad length", "9110 10.1.1", post(EXPECT, b"Content-Length: x")),
    refused(
        "100-continue with two framings",
        "9110 10.1.1",
        post(EXPECT, b"Content-Length: 3", b"Transfer-Encoding: chunked"),
    ),
    refused(
        "100-continue without Host",
        "9110 10.1.1",
        b"POST / HTTP/1.1\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n",
    ),
]

UPGRADE: list[Row] = [
    accepted("an upgrade is ignored", "9110 7.8", get(b"Connection: Upgrade", b"Upgrade: websocket")),
    accepted(
        "h2c is ignored",
        "9110 7.8",
        get(b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA"),
    ),
    accepted("Upgrade without Connection", "9110 7.8", get(b"Upgrade: h2c")),
    accepted(
        "an upgrade with a body",
        "9110 7.8",
        post(b"Connection: Upgrade", b"Upgrade: h2c", b"Content-Length: 3", body=b"abc"),
        ABC,
    ),
    accepted(
        "an upgrade with chunks",
        "9110 7.8",
        chunked(b"3\r\nabc\r\n0\r\n\r\n", b"Connection: Upgrade", b"Upgrade: h2c"),
        ABC,
    ),
    accepted(
        "a GET behind an upgrade",
        "9110 7.8",
        get(b"Connection: Upgrade", b"Upgrade: h2c", path=b"/1") + get(path=b"/2"),
        Call(path="/1"),
        Call(path="/2"),
    ),
    accepted(
        "an upgrade with 100-continue",
        "9110 7.8",
        post(EXPECT, b"Connection: Upgrade", b"Upgrade: h2c", b"Content-Length: 3"),
        ABC,
        then=b"abc",
        interim=(1,),
    ),
    refused(
        "a bad one behind an upgrade",
        "9110 7.8",
        get(b"Connection: Upgrade", b"Upgrade: h2c") + b"garbage\r\n\r\n",
        after=(Call(),),
    ),
]

# The runner's parser of responses checks what holds for all of them; here stands what only some must have or not have.
RESPONSES: list[Row] = [
    accepted(
        "a known length",
        "9110 8.6",
        get(path=b"/hello"),
        Call(path="/hello"),
        answer={"Content-Length": "6", "Transfer-Encoding": None},
    ),
    accepted(
        "no length: chunks",
        "9112 6.1",
        get(path=b"/stream"),
        Call(path="/stream"),
        answer={"Transfer-Encoding": "chunked", "Content-Length": None},
    ),
    accepted(
        "no length and close", "9112 6.3", get(b"Connection: close", path=b"/stream"), Call(path="/stream"), closes=True
    ),
    accepted(
        "no length for HTTP/1.0",
        "9112 6.1",
        get_1_0(path=b"/stream"),
        Call(path="/stream"),
        closes=True,
        answer={"Transfer-Encoding": None},
    ),
    accepted(
        "no length for HTTP/1.0 keep-alive",
        "9112 9.3",
        get_1_0(b"Connection: keep-alive", path=b"/stream"),
        Call(path="/stream"),
        closes=True,
        answer={"Transfer-Encoding": None},
    ),
    accepted(
        "HEAD has the GET's length",
        "9110 9.3.2",
        with_line(b"HEAD /hello HTTP/1.1"),
        Call("HEAD", "/hello"),
        answer={"Content-Length": "6"},
    ),
    accepted(
        "HEAD of a stream has no length",
        "9110 9.3.2",
        with_line(b"HEAD /stream HTTP/1.1"),
        Call("HEAD", "/stream"),
        answer={"Content-Length": None},
    ),
    accepted(
        "204 has no length",
        "9110 8.6",
        get(path=b"/204"),
        Call(path="/204"),
        answer={"Content-Length": None, "Transfer-Encoding": None},
    ),
    accepted(
        "304 has no body", "9110 15.4.5", get(path=b"/304"), Call(path="/304"), answer={"Transfer-Encoding": None}
    ),
    accepted(
        "204 for HTTP/1.0 keep-alive", "9112 9.3", get_1_0(b"Connection: keep-alive", path=b"/204"), Call(path="/204")
    ),
    accepted(
        "304 for HTTP/1.0 keep-alive", "9112 9.3", get_1_0(b"Connection: keep-alive", path=b"/304"), Call(path="/304")
    ),
    accepted(
        "an empty body has a length",
        "9110 8.6",
        get(path=b"/empty"),
        Call(path="/empty"),
        answer={"Content-Length": "0"},
    ),
]

ROWS: list[Row] = [*PERSISTENCE, *PIPELINING, *CONTINUE, *UPGRADE, *RESPONSES]
