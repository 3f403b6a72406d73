"""How long a request's body is (RFC 9112, sections 6 and 7): Content-Length, Transfer-Encoding, chunks."""

from __future__ import annotations

from tests.http_cases.row import Call, Row, accepted, broken_off, chunked, get, post, refused, with_line

ABC = Call("POST", body=b"abc", environ={"CONTENT_LENGTH": "3"})
EMPTY = Call("POST", body=b"")
LAST = b"0\r\n\r\n"
ABC_CHUNKED = b"3\r\nabc\r\n" + LAST

CONTENT_LENGTH: list[Row] = [
    accepted("a body", "9110 8.6", post(b"Content-Length: 3", body=b"abc"), ABC),
    accepted("a length of 0", "9110 8.6", post(b"Content-Length: 0"), Call("POST", environ={"CONTENT_LENGTH": "0"})),
    accepted("leading zeros", "9110 8.6", post(b"Content-Length: 0003", body=b"abc"), ABC),
    accepted("white space around the length", "9112 5.1", post(b"Content-Length: \t3\t ", body=b"abc"), ABC),
    accepted("content-length in lower case", "9110 5.1", post(b"content-length: 3", body=b"abc"), ABC),
    accepted("a GET with a body", "9110 9.3.1", get(b"Content-Length: 3") + b"abc", Call(body=b"abc")),
    accepted(
        "a DELETE with a body",
        "9110 9.3.5",
        with_line(b"DELETE / HTTP/1.1", b"Content-Length: 3") + b"abc",
        Call("DELETE", body=b"abc"),
    ),
    accepted(
        "a HEAD with a body",
        "9110 9.3.2",
        with_line(b"HEAD / HTTP/1.1", b"Content-Length: 3") + b"abc",
        Call("HEAD", body=b"abc"),
    ),
    accepted(
        "a body of every byte",
        "9110 6.4",
        post(b"Content-Length: 256", body=bytes(range(256))),
        Call("POST", body=bytes(range(256))),
    ),
    accepted(
        "a body that looks like a request",
        "9112 6.3",
        post(b"Content-Length: %d" % len(get()), body=get()),
        Call("POST", body=get()),
    ),
    accepted("no length, no body", "9112 6.3", post(), Call("POST", environ={"CONTENT_LENGTH": None})),
    refused("a negative length", "9110 8.6", post(b"Content-Length: -3", body=b"abc")),
    refused("a length with a plus", "9110 8.6", post(b"Content-Length: +3", body=b"abc")),
    refused("a length in hex", "9110 8.6", post(b"Content-Length: 0x3", body=b"abc")),
    refused("a hex digit", "9110 8.6", post(b"Content-Length: a", body=b"0123456789")),
    refused("a space in a length", "9110 8.6", post(b"Content-Length: 3 3", body=b"abc")),
    refused("an empty length", "9110 8.6", post(b"Content-Length:", body=b"")),
    refused("a length of white space", "9110 8.6", post(b"Content-Length: ", body=b"")),
    refused("a length that is no number", "9110 8.6", post(b"Content-Length: three", body=b"abc")),
    refused("a length with a point", "9110 8.6", post(b"Content-Length: 3.0", body=b"abc")),
    refused("a length with an underscore", "9110 8.6", post(b"Content-Length: 1_0", body=b"0123456789")),
    refused("a length in quotes", "9110 8.6", post(b'Content-Length: "3"', body=b"abc")),
    refused("a length in Arabic digits", "9110 8.6", post("Content-Length: \u0663".encode(), body=b"abc")),
    refused("a length with a comma", "9110 8.6", post(b"Content-Length: 3,", body=b"abc")),
    refused("a list of equal lengths", "9110 8.6", post(b"Content-Length: 3, 3", body=b"abc")),
    refused("a list of lengths", "9110 8.6", post(b"Content-Length: 3, 4", body=b"abcd")),
    refused("Content-Length twice, equal", "9112 6.3", post(b"Content-Length: 3", b"Content-Length: 3", body=b"abc")),
    refused(
        "Content-Length twice, different", "9112 6.3", post(b"Content-Length: 3", b"content-length: 4", body=b"abcd")
    ),
    refused(
        "Content-Length twice, the first 0", "9112 6.3", post(b"Content-Length: 0", b"Content-Length: 3", body=b"abc")
    ),
    refused("a bad length of a GET", "9112 6.3", get(b"Content-Length: x")),
    refused("a length of 2 to the 64", "9110 8.6", post(b"Content-Length: 18446744073709551616"), 400, 413),
    refused(
        "a length of 2 to the 64 and 3",
        "9110 8.6",
        post(b"Content-Length: 18446744073709551619", body=b"abc"),
        400,
        413,
    ),
    refused("a length of 60 digits", "9110 8.6", post(b"Content-Length: " + b"9" * 60), 400, 413),
    refused("a length of 5000 digits", "9110 8.6", post(b"Content-Length: " + b"9" * 5000), 400, 413),
    refused("a length over the limit, before its body", "9110 15.5.14", post(b"Content-Length: 1073741825"), 413),
    broken_off("a body that ends early", "9112 8", post(b"Content-Length: 10", body=b"abc")),
    broken_off("no body where one is announced", "9112 8", post(b"Content-Length: 10")),
    broken_off("a head that ends early", "9112 8", b"GET / HTTP/1.1\r\nHost: example.org\r\nX-A"),
    broken_off("a request line that ends early", "9112 8", b"GET /"),
]

TRANSFER_ENCODING: list[Row] = [
    accepted("chunked", "9112 6.1", chunked(ABC_CHUNKED), ABC),
    accepted("Chunked", "9112 7", post(b"Transfer-Encoding: ChUnKeD", body=ABC_CHUNKED), ABC),
    accepted("white space around chunked", "9112 5.1", post(b"Transfer-Encoding: \tchunked  ", body=ABC_CHUNKED), ABC),
    accepted("transfer-encoding in lower case", "9110 5.1", post(b"transfer-encoding:chunked", body=ABC_CHUNKED), ABC),
    accepted("a GET in chunks", "9110 9.3.1", get(b"Transfer-Encoding: chunked") + ABC_CHUNKED, Call(body=b"abc")),
    accepted("TE is another field", "9110 10.1.4", get(b"TE: trailers", b"Connection: TE")),
    refused(
        "Content-Length and chunked",
        "9112 6.1",
        post(b"Content-Length: 3", b"Transfer-Encoding: chunked", body=ABC_CHUNKED),
    ),
    refused(
        "chunked and Content-Length",
        "9112 6.1",
        post(b"Transfer-Encoding: chunked", b"Content-Length: 3", body=ABC_CHUNKED),
    ),
    refused(
        "chunked and the right length",
        "9112 6.1",
        post(b"Content-Length: 13", b"Transfer-Encoding: chunked", body=ABC_CHUNKED),
    ),
    refused(
        "chunked and a length of 0",
        "9112 6.1",
        post(b"Content-Length: 0", b"Transfer-Encoding: chunked", body=ABC_CHUNKED),
    ),
    refused(
        "Content-Length and identity",
        "9112 6.1",
        post(b"Content-Length: 3", b"Transfer-Encoding: identity", body=b"abc"),
        400,
        501,
    ),
    refused(
        "chunked by HTTP/1.0", "9112 6.1", with_line(b"POST / HTTP/1.0", b"Transfer-Encoding: chunked") + ABC_CHUNKED
    ),
    refused("gzip, chunked", "9112 6.1", post(b"Transfer-Encoding: gzip, chunked", body=ABC_CHUNKED), 400, 501),
    refused("chunked, gzip", "9112 6.3", post(b"Transfer-Encoding: chunked, gzip", body=ABC_CHUNKED), 400, 501),
    refused("gzip", "9112 6.3", post(b"Transfer-Encoding: gzip", body=ABC_CHUNKED), 400, 501),
    refused("identity", "9112 6.1", post(b"Transfer-Encoding: identity", body=ABC_CHUNKED), 400, 501),
    refused("identity, chunked", "9112 6.1", post(b"Transfer-Encoding: identity, chunked", body=ABC_CHUNKED), 400, 501),
    refused("chunked, chunked", "9112 6.1", post(b"Transfer-Encoding: chunked, chunked", body=ABC_CHUNKED)),
    refused("chunked, identity", "9112 6.3", post(b"Transfer-Encoding: chunked, identity", body=ABC_CHUNKED), 400, 501),
    refused("Transfer-Encoding twice", "9112 6.1", chunked(ABC_CHUNKED, b"Transfer-Encoding: chunked")),
    refused(
        "Transfer-Encoding twice, gzip first",
        "9112 6.1",
        post(b"Transfer-Encoding: gzip", b"Transfer-Encoding: chunked", body=ABC_CHUNKED),
        400,
        501,
    ),
    refused(
        "Transfer-Encoding twice, identity last",
        "9112 6.3",
        chunked(ABC_CHUNKED, b"Transfer-Encoding: identity"),
        400,
        501,
    ),
    refused("an empty Transfer-Encoding", "9112 6.1", post(b"Transfer-Encoding:", body=ABC_CHUNKED), 400, 501),
    refused("an unknown encoding", "9112 6.1", post(b"Transfer-Encoding: xchunked", body=ABC_CHUNKED), 400, 501),
    refused("chunked and more letters", "9112 6.1", post(b"Transfer-Encoding: chunkedx", body=ABC_CHUNKED), 400, 501),
    refused("two words", "9112 6.1", post(b"Transfer-Encoding: x chunked", body=ABC_CHUNKED), 400, 501),
    refused("chunked with a parameter", "9112 7", post(b"Transfer-Encoding: chunked;q=1", body=ABC_CHUNKED), 400, 501),
    refused("chunked in quotes", "9112 6.1", post(b'Transfer-Encoding: "chunked"', body=ABC_CHUNKED), 400, 501),
    refused("a space before the colon of it", "9112 5.1", post(b"Transfer-Encoding : chunked", body=ABC_CHUNKED)),
    refused("a vertical tab before chunked", "9110 5.5", post(b"Transfer-Encoding: \x0bchunked", body=ABC_CHUNKED)),
    refused("a vertical tab behind chunked", "9110 5.5", post(b"Transfer-Encoding: chunked\x0b", body=ABC_CHUNKED)),
    refused(
        "a no-break space before chunked",
        "9110 5.5",
        post(b"Transfer-Encoding: \xa0chunked", body=ABC_CHUNKED),
        400,
        501,
    ),
    refused("NUL in the field's name", "9110 5.1", post(b"Transfer-Encoding\0: chunked", body=ABC_CHUNKED)),
    refused("a bare CR before chunked", "9112 2.2", post(b"Transfer-Encoding:\rchunked", body=ABC_CHUNKED)),
    refused("hidden behind LF", "9112 2.2", post(b"X-A: 1\nTransfer-Encoding: chunked", body=ABC_CHUNKED)),
]

CHUNKS: list[Row] = [
    accepted("no chunk but the last", "9112 7.1", chunked(LAST), EMPTY),
    accepted("two chunks", "9112 7.1", chunked(b"1\r\na\r\n2\r\nbc\r\n" + LAST), ABC),
    accepted("hex in capitals", "9112 7.1", chunked(b"A\r\n0123456789\r\n" + LAST), Call("POST", body=b"0123456789")),
    accepted(
        "hex in small letters", "9112 7.1", chunked(b"a\r\n0123456789\r\n" + LAST), Call("POST", body=b"0123456789")
    ),
    accepted("leading zeros of a size", "9112 7.1", chunked(b"0003\r\nabc\r\n" + LAST), ABC),
    accepted("a last chunk of many zeros", "9112 7.1", chunked(b"3\r\nabc\r\n000\r\n\r\n"), ABC),
    accepted(
        "line ends inside a chunk", "9112 7.1", chunked(b"4\r\n\r\n\r\n\r\n" + LAST), Call("POST", body=b"\r\n\r\n")
    ),
    accepted("an extension", "9112 7.1.1", chunked(b"3;a=b\r\nabc\r\n" + LAST), ABC),
    accepted("an extension without a value", "9112 7.1.1", chunked(b"3;a\r\nabc\r\n" + LAST), ABC),
    accepted("two extensions", "9112 7.1.1", chunked(b"3;a=b;c=d\r\nabc\r\n" + LAST), ABC),
    accepted("an extension in quotes", "9112 7.1.1", chunked(b'3;a="b;c \\" d"\r\nabc\r\n' + LAST), ABC),
    accepted("an extension of the last chunk", "9112 7.1.1", chunked(b"3\r\nabc\r\n0;a=b\r\n\r\n"), ABC),
    accepted(
        "a trailer is dropped",
        "9110 6.5.1",
        chunked(b"3\r\nabc\r\n0\r\nX-T: 1\r\n\r\n"),
        Call("POST", body=b"abc", environ={"HTTP_X_T": None}),
    ),
    accepted(
        "a trailer does not add to a header",
        "9110 6.5.1",
        chunked(b"0\r\nX-A: 2\r\nx-a: 3\r\n\r\n", b"X-A: 1"),
        Call("POST", environ={"HTTP_X_A": "1"}),
    ),
    accepted(
        "a trailer announced",
        "9110 6.6.2",
        chunked(b"0\r\nX-T: 1\r\n\r\n", b"Trailer: X-T"),
        Call("POST", environ={"HTTP_X_T": None}),
    ),
    accepted(
        "a trailer is not the next request's header",
        "9110 6.5.1",
        chunked(b"0\r\nX-T: 1\r\n\r\n") + get(),
        EMPTY,
        Call(environ={"HTTP_X_T": None}),
    ),
    accepted(
        "a trailer Host",
        "9110 6.5.1",
        chunked(b"0\r\nHost: evil.example\r\n\r\n"),
        Call("POST", environ={"HTTP_HOST": "example.org"}),
    ),
    refused("a trailer Content-Length", "9110 6.5.1", chunked(b"0\r\nContent-Length: 5\r\n\r\n")),
    refused("a trailer Transfer-Encoding", "9110 6.5.1", chunked(b"0\r\nTransfer-Encoding: chunked\r\n\r\n")),
    refused("a trailer with a space before its colon", "9112 7.1.2", chunked(b"0\r\nX-T : 1\r\n\r\n")),
    refused("a trailer without a colon", "9112 7.1.2", chunked(b"0\r\nX-T\r\n\r\n")),
    refused("a trailer that ends in LF", "9112 2.2", chunked(b"0\r\nX-T: 1\n\r\n")),
    refused("a folded trailer", "9112 5.2", chunked(b"0\r\nX-T: 1\r\n 2\r\n\r\n")),
    refused("NUL in a trailer", "9110 5.5", chunked(b"0\r\nX-T: \0\r\n\r\n")),
    refused(
        "trailers of 200 kB",
        "6585 5",
        chunked(b"0\r\n" + (b"X-T: " + b"a" * 1000 + b"\r\n") * 200 + b"\r\n"),
        400,
        413,
        431,
    ),
    refused("a size that is no number", "9112 7.1", chunked(b"g\r\nabc\r\n" + LAST)),
    refused("an empty size", "9112 7.1", chunked(b"\r\nabc\r\n" + LAST)),
    refused("an extension without a size", "9112 7.1", chunked(b";a=b\r\nabc\r\n" + LAST)),
    refused("a negative size", "9112 7.1", chunked(b"-3\r\nabc\r\n" + LAST)),
    refused("a size with a plus", "9112 7.1", chunked(b"+3\r\nabc\r\n" + LAST)),
    refused("a size with 0x", "9112 7.1", chunked(b"0x3\r\nabc\r\n" + LAST)),
    refused("a size with an underscore", "9112 7.1", chunked(b"0_3\r\nabc\r\n" + LAST)),
    refused("a space before a size", "9112 7.1", chunked(b" 3\r\nabc\r\n" + LAST)),
    refused("a space behind a size", "9112 7.1", chunked(b"3 \r\nabc\r\n" + LAST)),
    refused("a tab behind a size", "9112 7.1", chunked(b"3\t\r\nabc\r\n" + LAST)),
    refused("letters behind a size", "9112 7.1", chunked(b"3z\r\nabc\r\n" + LAST)),
    refused("a size of 17 digits", "9112 7.1", chunked(b"10000000000000003\r\nabc\r\n" + LAST), 400, 413),
    refused(
        "a size of 17 digits, wrapping to 3", "9112 7.1", chunked(b"F0000000000000003\r\nabc\r\n" + LAST), 400, 413
    ),
    refused("a size of 200 kB of zeros", "9112 7.1", chunked(b"0" * 200_000 + b"3\r\nabc\r\n" + LAST), 400, 413, 431),
    refused("LF behind a size", "9112 2.2", chunked(b"3\nabc\r\n" + LAST)),
    refused("CR behind a size", "9112 2.2", chunked(b"3\rabc\r\n" + LAST)),
    refused("LF behind a chunk", "9112 2.2", chunked(b"3\r\nabc\n" + LAST)),
    refused("CR behind a chunk", "9112 2.2", chunked(b"3\r\nabc\r" + LAST)),
    refused("nothing behind a chunk", "9112 7.1", chunked(b"3\r\nabc" + LAST)),
    refused("a chunk longer than its size", "9112 7.1", chunked(b"3\r\nabcd\r\n" + LAST)),
    refused("a chunk shorter than its size", "9112 7.1", chunked(b"3\r\nab\r\n" + LAST)),
    refused("two bytes in place of a chunk's end", "9112 7.1", chunked(b"3\r\nabcXX" + LAST)),
    refused("LF in an extension", "9112 7.1.1", chunked(b"3;a\nb\r\nabc\r\n" + LAST)),
    refused("CR in an extension", "9112 7.1.1", chunked(b"3;a\rb\r\nabc\r\n" + LAST)),
    refused("NUL in an extension", "9112 7.1.1", chunked(b"3;a=\0\r\nabc\r\n" + LAST)),
    refused("an extension in open quotes", "9112 7.1.1", chunked(b'3;a="b\r\nabc\r\n' + LAST)),
    refused(
        "an extension of 200 kB", "9112 7.1.1", chunked(b"3;a=" + b"b" * 200_000 + b"\r\nabc\r\n" + LAST), 400, 413, 431
    ),
    refused("the last chunk ends in LF", "9112 2.2", chunked(b"3\r\nabc\r\n0\n\r\n")),
    refused("the body ends in LF", "9112 2.2", chunked(b"3\r\nabc\r\n0\r\n\n")),
    refused("the body ends in LF LF", "9112 2.2", chunked(b"3\r\nabc\r\n0\n\n")),
    broken_off("no last chunk", "9112 8", chunked(b"3\r\nabc\r\n")),
    broken_off("a chunk that ends early", "9112 8", chunked(b"5\r\nabc")),
    broken_off("no end behind the last chunk", "9112 8", chunked(b"3\r\nabc\r\n0\r\n")),
]

ROWS: list[Row] = [*CONTENT_LENGTH, *TRANSFER_ENCODING, *CHUNKS]
