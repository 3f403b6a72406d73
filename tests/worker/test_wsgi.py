"""What applications get wrong and what the server makes of it; see also test_bridge.py for what it refuses."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.support.inprocess import BridgeThread
from tests.support.processes import Frontend
from threadbridge import Bridge
from threadbridge.worker import wsgi

PLAIN = [("Content-Type", "text/plain")]


def answers(status: str, headers: list[tuple[str, str]], body: Iterable[bytes] = (b"hello",)) -> Any:
    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        start_response(status, headers)
        return body

    return app


@pytest.mark.parametrize("name", ["Connection", "keep-alive", "Upgrade", "Transfer-Encoding", "Trailer"])
def test_headers_of_the_connection_are_dropped_with_one_warning(name: str, caplog: pytest.LogCaptureFixture) -> None:
    wsgi._dropped.clear()
    app = answers("200 OK", [*PLAIN, (name, "chunked")])
    with BridgeThread(app, threads=1) as server:
        for _ in range(3):
            response, body = server.request(path="/events")
            assert (response.status, body) == (200, b"hello")
            assert response.headers[name] is None and response.headers["Content-Length"] == "5"
    [warning] = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert name in warning.getMessage() and "/events" in warning.getMessage()


@pytest.mark.parametrize(
    ("body", "method", "length"),
    [
        ([], "HEAD", None),
        ([b""], "HEAD", None),
        ([], "GET", "0"),
        ([b"hello"], "HEAD", "5"),
        ([b"hello"], "GET", "5"),
    ],
)
def test_the_length_of_a_list(body: list[bytes], method: str, length: str | None) -> None:
    with BridgeThread(answers("200 OK", PLAIN, body), threads=1) as server:
        response, _ = server.request(method)
    assert (response.status, response.headers["Content-Length"]) == (200, length)


@pytest.mark.parametrize(
    ("given", "status", "reason"),
    [("200", 200, ""), ("404 ", 404, ""), ("299 Own", 299, "Own"), ("600 Own", 600, "Own"), ("999", 999, "")],
)
def test_statuses_that_other_servers_send_too(given: str, status: int, reason: str) -> None:
    with BridgeThread(answers(given, PLAIN), threads=1) as server:
        response, body = server.request()
    assert (response.status, response.reason, body) == (status, reason, b"hello")


def test_the_application_s_own_server_header_is_kept() -> None:
    with BridgeThread(answers("200 OK", [*PLAIN, ("server", "own")]), threads=1) as server:
        response, _ = server.request()
    assert response.headers.get_all("Server") == ["own"]


def create_app() -> Any:
    return answers("200 OK", PLAIN)


def create_app_with(configuration: str = "production") -> Any:
    return answers("200 OK", PLAIN)


async def asgi(scope: Any, receive: Any, send: Any) -> None: ...


@pytest.mark.parametrize("factory", [create_app, create_app_with, asgi])
def test_a_factory_is_told_at_the_start(factory: Any) -> None:
    with pytest.raises(ValueError, match=r"If it is a factory, give what it returns"):
        Bridge(factory, threads=1)


def test_a_factory_on_the_command_line_is_told_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "factory_app.py").write_text("def create_app():\n    return lambda environ, start_response: []\n")
    server = Frontend(("-m", "threadbridge", "factory_app:create_app", "--threads=1", "--port={port}"), cwd=tmp_path)
    with pytest.raises(RuntimeError, match=r"ended with 2:\n.*If it is a factory, give what it returns"):
        server.start()


def test_a_factory_that_takes_two_arguments_is_told_by_its_first_request(caplog: pytest.LogCaptureFixture) -> None:
    def create(first: Any, second: Any) -> Any:
        return answers("200 OK", PLAIN)

    with BridgeThread(create, threads=1) as server:
        assert server.request()[0].status == 500
    assert "is it a factory of applications?" in caplog.text


class Callables:
    def __call__(self, environ: Any, start_response: Any) -> list[bytes]:
        return []

    def method(self, environ: Any, start_response: Any, debug: bool = False) -> list[bytes]:
        return []


class Iterated:
    def __init__(self, environ: Any, start_response: Any) -> None: ...


@pytest.mark.parametrize(
    "application", [Callables(), Callables().method, Iterated, lambda *args, **keywords: [], print]
)
def test_what_can_be_called_as_an_application_is_one(application: Any) -> None:
    wsgi.check_application(application)


MULTIPROCESS = """
def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(environ["wsgi.multiprocess"]).encode()]
"""


@pytest.mark.parametrize(
    ("arguments", "is_multiprocess"), [((), "False"), (("--processes=2",), "True"), (("--reuse_port",), "True")]
)
def test_the_application_is_told_whether_it_runs_in_other_processes_too(
    arguments: tuple[str, ...], is_multiprocess: str, tmp_path: Path
) -> None:
    (tmp_path / "told_app.py").write_text(MULTIPROCESS)
    command = ("-m", "threadbridge", "told_app:app", "--threads=1", "--port={port}", *arguments)
    with Frontend(command, cwd=tmp_path) as server:
        assert requests.get(server.url, timeout=30).text == is_multiprocess
        assert server.stop() == 0
