"""The access log: what its lines say of requests that end in all ways, and whose programs can read them."""

from __future__ import annotations

import io
import json
import logging
import pickle
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from logging.handlers import QueueHandler
from queue import SimpleQueue
from typing import Any
from wsgiref.types import StartResponse, WSGIEnvironment

import pytest
from tornado.log import access_log

from tests.support.inprocess import BridgeThread, wait_until
from tests.support.records import record
from threadbridge import Lane, current
from threadbridge.process.logs import RequestIds, TextFormatter
from threadbridge.telemetry.access_log import AccessLines, write

COMBINED = re.compile(
    r"(?P<client>\S+) - - \[(?P<time>\d\d/[A-Z][a-z]{2}/\d{4}:\d\d:\d\d:\d\d [+-]\d{4})\] "
    r'"(?P<request>[^"]*)" (?P<status>\d{3}) (?P<sent>\d+) "(?P<referer>[^"]*)" "(?P<agent>[^"]*)" '
    r"id=(?P<id>\S+) lane=(?P<lane>\S+) wait=(?P<wait>\d+\.\d) run=(?P<run>\d+\.\d) database=(?P<database>\d+\.\d) "
    r"ending=(?P<ending>[a-z]+)(?: class=(?P<class>[a-z]+) expected=(?P<expected>\d+\.\d)(?P<outgrown> outgrown=1)?)?"
    r"(?: changes=(?P<changes>[a-z-]+))?"
)


@pytest.fixture(autouse=True)
def _logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tornado.access")


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, str]]:
    """The fields of each line."""
    found = []
    for logged in caplog.records:
        if logged.name == "tornado.access":
            for line in logged.getMessage().splitlines():
                match = COMBINED.fullmatch(line)
                assert match is not None, line
                found.append(match.groupdict())
    return found


class Application:
    """Answers; for some paths only when the test says so."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self.go_on = threading.Event()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        if environ["PATH_INFO"] == "/fails":
            raise LookupError("as asked")
        if environ["PATH_INFO"] == "/waits":
            current().on_cancel(self.go_on.set)
            self.entered.release()
            assert self.go_on.wait(30)
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"hello"]


def test_a_line_says_who_asked_for_what_and_how_it_ended(caplog: pytest.LogCaptureFixture) -> None:
    with BridgeThread(Application(), threads=1, lanes=[Lane("own", "/own*", threads=1)], xheaders=True) as server:
        headers = {"Referer": "http://a/", "User-Agent": "b c", "X-Real-IP": "192.0.2.7", "X-Request-ID": "d-1"}
        server.request(path="/own?x=1", headers=headers)
        response, _ = server.request(path="/")
    first, second = lines(caplog)
    wanted = {"client": "192.0.2.7", "request": "GET /own?x=1 HTTP/1.1", "status": "200", "sent": "5"}
    wanted |= {"referer": "http://a/", "agent": "b c", "id": "d-1", "lane": "own", "ending": "done"}
    assert {name: first[name] for name in wanted} == wanted
    wanted = {"client": "127.0.0.1", "request": "GET / HTTP/1.1", "lane": "default", "referer": "-", "agent": "-"}
    wanted |= {"id": response.headers["X-Request-ID"]}
    assert {name: second[name] for name in wanted} == wanted


def test_a_client_that_is_no_address_is_escaped() -> None:
    # Other servers than this package's may name any.
    [line] = AccessLines([record(client='fe80::1%1 - - "GET admin" 200 <\x9b>')]).text.splitlines()
    assert line.startswith("fe80::1%1\\x20-\\x20-\\x20\\x22GET\\x20admin\\x22\\x20200\\x20<\\x9B> - - [")


def test_every_ending_has_its_line(caplog: pytest.LogCaptureFixture) -> None:
    application = Application()
    lanes = [Lane("late", "/waits", threads=1, queue=0, deadline=0.2)]
    with BridgeThread(application, threads=1, lanes=lanes) as server:
        late = server.send(b"GET /waits HTTP/1.1\r\nHost: a\r\n\r\n")
        assert application.entered.acquire(timeout=10)
        assert server.request(path="/waits")[0].status == 503
        assert late.recv(1000).startswith(b"HTTP/1.1 504 ")
        late.close()
        wait_until(lambda: server.bridge.lanes[0].busy == 0, "the lane has room")
        # Only now: the cancellation has set it.
        application.go_on.clear()
        assert server.request(path="/fails")[0].status == 500
        with server.send(b"GET /waits HTTP/1.1\r\nHost: a\r\n\r\n"):
            assert application.entered.acquire(timeout=10)
        wait_until(lambda: not server.bridge.exchanges.open, "the client's leaving is noticed")
    assert sorted((line["ending"], line["status"]) for line in lines(caplog)) == [
        ("abandoned", "499"),
        ("expired", "504"),
        ("failed", "500"),
        ("shed", "503"),
    ]


@pytest.mark.parametrize(
    ("sent", "status", "request_line"),
    [
        (b"nonsense\r\n\r\n", "400", "nonsense"),
        (b"\x16\x03\x01", "400", r"\x16\x03\x01"),
        (b"GET / HTTP/1.1\r\n\r\n", "400", "GET / HTTP/1.1"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + 100_000 * b"x" + b"\r\n\r\n", "431", "GET / HTTP/1.1"),
        (b"POST /b HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999\r\n\r\n", "413", "POST /b HTTP/1.1"),
        (b"POST /b HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nno\r\n", "400", "POST /b HTTP/1.1"),
    ],
)
def test_what_the_server_refuses_has_its_line(
    sent: bytes, status: str, request_line: str, caplog: pytest.LogCaptureFixture
) -> None:
    with BridgeThread(Application(), threads=1) as server:
        answer = server.exchange(sent)
        assert answer.startswith(b"HTTP/1.1 " + status.encode())
    [line] = lines(caplog)
    assert (line["status"], line["ending"], line["client"]) == (status, "refused", "127.0.0.1")
    assert line["request"] == request_line


@pytest.mark.parametrize(
    ("sent", "logged"),
    [
        ('a"b', r"a\x22b"),
        ("a\\b", r"a\x5Cb"),
        ("a\tb", r"a\x09b"),
        ("a\x1b[1m", r"a\x1B[1m"),
        ("\u00e4\xff\x80", r"\xE4\xFF\x80"),
        ("a b", "a b"),
    ],
)
def test_nobody_can_forge_a_line(sent: str, logged: str) -> None:
    """As nginx does it: http://nginx.org/en/docs/http/ngx_http_log_module.html#log_format."""
    for field, name in (("target", "request"), ("referer", "referer"), ("user_agent", "agent")):
        match = COMBINED.fullmatch(AccessLines([record(**{field: sent})]).text)
        assert match is not None and logged in match[name]


def test_what_became_of_changes_is_the_last_field_of_requests_that_made_some() -> None:
    logged = AccessLines([record(), record(changes="rolled back")])
    untouched, changed = logged.text.splitlines()
    match = COMBINED.fullmatch(untouched)
    assert match is not None and match["changes"] is None
    match = COMBINED.fullmatch(changed)
    assert match is not None and (match["ending"], match["changes"]) == ("done", "rolled-back")
    assert [json.loads(line)["changes"] for line in logged.json.splitlines()] == ["none", "rolled back"]


def test_each_line_has_the_time_of_its_end() -> None:
    text = AccessLines([record(), record(total=0.05), record(total=0.2), record(total=60.0)]).text
    assert re.findall(r":(\d\d:\d\d) [+-]", text) == ["13:20", "13:20", "13:21", "14:20"]


def test_the_same_for_programs() -> None:
    parsed = [json.loads(line) for line in AccessLines([record(run=0.0123), record(target='/"\n')]).json.splitlines()]
    assert parsed[0]["time"] == "2023-11-14T22:13:20.900+00:00"
    assert (parsed[0]["run_ms"], parsed[0]["status"], parsed[1]["target"]) == (12.3, 200, '/"\n')


class Seen(logging.Handler):
    """An application's own handler."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    @property
    def messages(self) -> list[str]:
        return [record.getMessage() for record in self.records]


@contextmanager
def handled_by(*handlers: logging.Handler) -> Iterator[None]:
    """Only these see the records of the access log: not the handlers of pytest, which are foreign ones too."""
    before, propagate = access_log.handlers, access_log.propagate
    access_log.handlers, access_log.propagate = list(handlers), False
    yield
    access_log.handlers, access_log.propagate = before, propagate


def as_server_makes_it(handler: logging.Handler) -> logging.Handler:
    handler.setFormatter(TextFormatter("%(message)s", color=False))
    handler.addFilter(RequestIds())
    return handler


REQUESTS = [record(id=f"r{number}", method="GET", target=f"/{number}?a=%20", total=0.0125) for number in range(8)]
EXPECTED = AccessLines(REQUESTS).text.splitlines()


def test_a_foreign_handler_gets_one_record_for_each_request() -> None:
    seen = Seen()
    output = io.StringIO()
    with handled_by(as_server_makes_it(logging.StreamHandler(output)), seen):
        write(REQUESTS)
    assert seen.messages == EXPECTED
    assert output.getvalue().splitlines() == EXPECTED
    assert [each.args for each in seen.records] == [(200, f"GET /{number}?a=%20 (x)", 12.5) for number in range(8)]
    first = vars(seen.records[0])
    assert (first["request_id"], first["status"], first["total_ms"]) == ("r0", 200, 12.5)


@pytest.mark.parametrize("where", ["logger", "handler", "formatter"])
def test_foreign_filters_and_formatters_get_one_record_for_each_request(where: str) -> None:
    asked: list[tuple[int, str]] = []

    class TornadoFilter(logging.Filter):
        """Reads a record as Tornado makes it."""

        def filter(self, record: logging.LogRecord) -> bool:
            assert isinstance(record.args, tuple)
            status, summary, _ = record.args
            assert isinstance(status, int) and isinstance(summary, str)
            asked.append((status, summary.split()[1]))
            return not summary.startswith("GET /3?")

    output = io.StringIO()
    handler = as_server_makes_it(logging.StreamHandler(output))
    if where == "formatter":
        handler.setFormatter(logging.Formatter("%(message)s"))
        expected = EXPECTED
    else:
        filtering = access_log if where == "logger" else handler
        filtering.addFilter(TornadoFilter())
        expected = [*EXPECTED[:3], *EXPECTED[4:]]
    with handled_by(handler):
        write(REQUESTS)
    access_log.filters.clear()
    assert output.getvalue().splitlines() == expected
    assert asked == ([] if where == "formatter" else [(200, f"/{number}?a=%20") for number in range(8)])


def test_the_server_s_own_handlers_get_one_record_for_all() -> None:
    written: list[str] = []

    class Stream(io.StringIO):
        def write(self, text: str) -> int:
            written.append(text)
            return len(text)

    errors_only = Seen()
    errors_only.setLevel(logging.ERROR)
    with handled_by(as_server_makes_it(logging.StreamHandler(Stream())), errors_only):
        write(REQUESTS)
    assert written == ["\n".join(EXPECTED) + "\n"]


def test_records_have_what_the_application_s_record_factory_gives() -> None:
    previous = logging.getLogRecordFactory()

    def factory(*args: Any, **keywords: Any) -> logging.LogRecord:
        made = previous(*args, **keywords)
        made.request_id = made.trace = "of the factory"
        return made

    queue: SimpleQueue[logging.LogRecord] = SimpleQueue()
    logging.setLogRecordFactory(factory)
    with handled_by(QueueHandler(queue)):
        write(REQUESTS[:1])
    logging.setLogRecordFactory(previous)
    # As it would cross to another process.
    crossed = pickle.loads(pickle.dumps(queue.get_nowait()))  # noqa: S301 - its own
    assert (crossed.getMessage(), crossed.trace, crossed.request_id) == (EXPECTED[0], "of the factory", "r0")
