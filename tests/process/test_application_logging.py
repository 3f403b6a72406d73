"""An application's logging configuration and the server's logs, and what is logged of a request that was cancelled."""

from __future__ import annotations

import json
import logging
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from tests.support.inprocess import reset, wait_until
from tests.support.processes import Frontend
from threadbridge.process.logs import restore_logging

CONFIGURES = """
import logging, logging.config, os

def configure():
    if os.environ["HOW"] == "dictConfig":
        # As Flask's documentation has it.
        logging.config.dictConfig({
            "version": 1,
            "formatters": {"default": {"format": "own format: %(message)s"}},
            "handlers": {"own": {"class": "logging.StreamHandler", "formatter": "default"}},
            "root": {"level": "WARNING", "handlers": ["own"]},
        })
    elif os.environ["HOW"] == "no root":
        logging.config.dictConfig({"version": 1, "loggers": {"app": {"level": "DEBUG"}}})
    else:
        # As alembic's files are.
        logging.config.fileConfig("logging.ini")

if os.environ["WHEN"] == "import":
    configure()

def app(environ, start_response):
    if environ["PATH_INFO"] == "/configures":
        configure()
    if environ["PATH_INFO"] == "/fails":
        raise LookupError("as asked")
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"hello"]
"""

INI = """
[loggers]
keys = root
[handlers]
keys = console
[formatters]
keys = generic
[logger_root]
level = WARN
handlers = console
[handler_console]
class = StreamHandler
args = (sys.stderr,)
formatter = generic
[formatter_generic]
format = own format: %(message)s
"""


@pytest.mark.parametrize("log_file", [True, False], ids=["file", "stderr"])
@pytest.mark.parametrize("when", ["import", "request"])
@pytest.mark.parametrize("how", ["dictConfig", "fileConfig", "no root"])
def test_an_application_that_configures_logging_does_not_silence_the_server(
    how: str, when: str, log_file: bool, tmp_path: Path
) -> None:
    (tmp_path / "configuring.py").write_text(CONFIGURES)
    (tmp_path / "logging.ini").write_text(INI)
    command = ["-m", "threadbridge", "configuring:app", "--threads=2", "--port={port}"]
    if log_file:
        command.append("--log_file_prefix=site.log")
    with Frontend(command, cwd=tmp_path, env={"HOW": how, "WHEN": when}) as server:

        def log(suffix: str) -> str:
            return (tmp_path / f"site.{suffix}").read_text() if log_file else server.output()

        if when == "request":
            requests.get(f"{server.url}/configures", timeout=30)
        wait_until(lambda: "they are on again" in log("log"), "the server's logs are on again")
        assert requests.get(f"{server.url}/fails", timeout=30).status_code == 500
        assert server.stop() == 0
        assert len(re.findall(r'"GET /fails HTTP/1.1" 500 ', log("access.log"))) == 1
        assert log("log").count("LookupError: as asked") == 1
        assert log("log").count("they are on again") == 1
        assert "stopped, every request is answered" in log("log")


FLASK = """
import logging, sys, threading
from flask import Flask
from flask.signals import got_request_exception
import threadbridge

app = Flask(__name__)
own = logging.FileHandler("own.log")
own.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
app.logger.addHandler(own)

@app.get("/waits")
def waits():
    gone = threading.Event()
    threadbridge.current().on_cancel(gone.set)
    open("entered", "a").write("x")
    gone.wait(60)
    raise LookupError("100% of the query was stopped")

@app.get("/fails")
def fails():
    raise LookupError("as asked")

def report(sender, exception, **extra):
    # As an error tracker does.
    if not threadbridge.is_cancelled():
        open("reported", "a").write(f"{exception}\\n")

got_request_exception.connect(report, app)
"""


@pytest.fixture
def flask_site(tmp_path: Path) -> Iterator[Frontend]:
    (tmp_path / "flask_app.py").write_text(FLASK)
    command = ("-m", "threadbridge", "flask_app:app", "--threads=4", "--port={port}")
    with Frontend(command, cwd=tmp_path) as server:
        yield server


def test_clients_that_leave_are_no_errors_of_the_application(flask_site: Frontend, tmp_path: Path) -> None:
    entered = tmp_path / "entered"
    for number in range(3):
        client = socket.create_connection(("127.0.0.1", flask_site.port), timeout=30)
        client.sendall(b"GET /waits HTTP/1.1\r\nHost: a\r\n\r\n")
        wait_until(lambda number=number: entered.exists() and len(entered.read_text()) > number, "it runs")  # type: ignore[misc]
        reset(client)
    own = tmp_path / "own.log"
    stopped = "Exception on /waits [GET] (the request was cancelled): LookupError('100% of the query was stopped')"
    wait_until(lambda: own.read_text().count("\n") == 3, "all are logged")
    assert own.read_text().splitlines() == [f"INFO {stopped}"] * 3
    assert requests.get(f"{flask_site.url}/fails", timeout=30).status_code == 500
    assert flask_site.stop() == 0
    assert own.read_text().splitlines()[3:5] == [
        "ERROR Exception on /fails [GET]",
        "Traceback (most recent call last):",
    ]
    output = flask_site.output()
    assert output.count("Traceback") == 1 and len(re.findall(r"^\[I .*" + re.escape(stopped), output, re.M)) == 3
    assert (tmp_path / "reported").read_text() == "as asked\n"


@pytest.mark.parametrize("processes", [1, 2])
def test_in_json_every_line_is_json(processes: int, tmp_path: Path) -> None:
    (tmp_path / "json_app.py").write_text(
        "def app(environ, start_response):\n    start_response('200 OK', [])\n    return []\n"
    )
    arguments = ("--threads=1", "--port={port}", "--log_json", f"--processes={processes}")
    with Frontend(("-m", "threadbridge", "json_app:app", *arguments), cwd=tmp_path) as server:
        requests.get(server.url, timeout=30)
        wait_until(lambda: "Serving on" in server.output(), "it says that it serves", 30)
        assert server.stop() == 0
        logged = [json.loads(line) for line in server.output().splitlines()]
    [first] = [each for each in logged if each.get("message", "").startswith("Serving on")]
    assert (first["level"], first["logger"]) == ("info", "threadbridge")
    assert server.url in first["message"] and str(server.process.pid) in first["message"]


def test_a_logger_that_was_not_disabled_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    restore_logging()
    assert caplog.records == []
