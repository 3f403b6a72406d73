"""The access log in the operator's own format, with gunicorn's atoms."""

from __future__ import annotations

import base64
import logging
import os
import re
from wsgiref.types import StartResponse, WSGIEnvironment

import pytest

from tests.support.inprocess import BridgeThread, wait_until
from tests.support.records import record
from threadbridge.telemetry.access_format import ATOMS, FIELDS, AccessFormat
from threadbridge.telemetry.access_log import AccessLines

GUNICORNS = '%(h)s %(l)s %(u)s %(t)s "%(r)s" %(s)s %(b)s "%(f)s" "%(a)s"'


def application(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
    environ["shop.tenant"] = "acme"
    environ["shop.object"] = object()
    fields = [("Content-Type", "text/plain"), ("X-Cache", "hit"), ("Set-Cookie", "a=1"), ("Set-Cookie", "b=2")]
    start_response("200 OK", fields)
    return [b"hello"]


def lines_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.name == "tornado.access"]


def test_what_a_request_and_its_response_say(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tornado.access")
    user = base64.b64encode(b"ann:secret").decode()
    headers = {"Authorization": f"Basic {user}", "X-Tag": "t", "User-Agent": "curl", "Referer": "http://a/"}
    own = " %({X-Tag}i)s %({x-none}i)s %({x-cache}o)s %({Set-Cookie}o)s %({shop.tenant}e)s %({shop.object}e)s"
    template = f"{GUNICORNS}{own} %({{REQUEST_METHOD}}e)s %(lane)s %(request_id)s %(ending)s %%"
    with BridgeThread(application, threads=1, access_log_format=template) as server:
        response, _ = server.request(path="/a?b=c", headers=headers)
        assert response.status == 200
        wait_until(lambda: len(lines_of(caplog)) == 1, "the request is logged")
    expected = (
        r'127\.0\.0\.1 - ann \[\d\d/[A-Z][a-z]{2}/\d{4}:\d\d:\d\d:\d\d [+-]\d{4}\] "GET /a\?b=c HTTP/1\.1" 200 5 '
        r'"http://a/" "curl" t - hit a=1, b=2 acme - GET default \S+ done %'
    )
    assert re.fullmatch(expected, lines_of(caplog)[0]), lines_of(caplog)


def test_a_request_that_is_refused_unread(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tornado.access")
    template = '%(u)s %({x-tag}i)s %({x-cache}o)s %({PATH_INFO}e)s "%(r)s" %(s)s %(ending)s'
    with BridgeThread(application, threads=1, access_log_format=template) as server:
        client = server.send(b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 400 ")
        client.close()
        wait_until(lambda: len(lines_of(caplog)) == 1, "it is logged")
    assert lines_of(caplog) == ['- - - - "GET / HTTP/1.1" 400 refused']


def test_the_numbers() -> None:
    line = AccessFormat("%(s)d %(B)05d %(b)s %(T)s %(M)s %(D)s %(L)s %(p)s %(m)s %(U)s %(q)s %(H)s %(run_ms)s").line
    text = AccessLines(
        [record(method="GET", target="/a?b", version="HTTP/1.0", sent=0, total=2.0345, run=1.5)], line
    ).text
    assert text == f"200 00000 - 2 2034 2034500 2.034500 <{os.getpid()}> GET /a b HTTP/1.0 1500.0"


def test_each_atom_can_be_used_alone() -> None:
    for name in (*ATOMS, *FIELDS, "{a}i", "{a}o", "{a}e"):
        assert isinstance(AccessFormat(f"<%({name})s>").line(record(), "time"), str)


def test_a_client_cannot_forge_lines() -> None:
    evil = 'x"\n127.0.0.1 - - "GET /admin" 200\x1b[2J\xe9\\'
    line = AccessFormat('"%(a)s" "%({x}i)s" "%(r)s"').line
    made = record(user_agent=evil, target=evil, kept={"{x}i": evil})
    text = AccessLines([made], line).text
    escaped = r"x\x22\x0A127.0.0.1 - - \x22GET /admin\x22 200\x1B[2J\xE9\x5C"
    assert text == f'"{escaped}" "{escaped}" "x {escaped} x"'


@pytest.mark.parametrize(
    ("template", "complaint"),
    [
        ("%(h)s %(z)s", r"there is no %\(z\)s; there are h, l, u, t, .*, request_id, .*\{NAME\}i"),
        ("%({a}x)s", r"there is no %\(\{a\}x\)s"),
        ("100 %", "the % at '%' begins no atom; expected %"),
        ("%h %s", "the % at '%h %s' begins no atom"),
        ("%(h)", r"the % at '%\(h\)' begins no atom"),
        ("%(h)d", "%d format: a real number is required, not str"),
        ("%(h)y", "unsupported format character 'y'"),
    ],
)
def test_a_format_that_cannot_be_used(template: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=f"access_log_format.*{complaint}"):
        BridgeThread(application, threads=1, access_log_format=template)


def test_nothing_is_kept_unless_it_is_shown() -> None:
    with BridgeThread(application, threads=1) as server:
        server.request()
        assert not server.bridge.shared.keeps_environ and server.bridge.telemetry.keep is None
    assert AccessFormat("%(h)s").needs_environ is False
