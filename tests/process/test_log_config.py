"""Logging as a file configures it, with the packages that people use for it."""

from __future__ import annotations

import gzip
import json
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
import requests
import yaml

from tests.support.processes import ROOT, Frontend

APPLICATION = """
import logging

def app(environ, start_response):
    logging.getLogger("shop").warning("asked for %s", environ["PATH_INFO"])
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"hello"]
"""
FILTERS = {"ids": {"()": "threadbridge.process.logs.RequestIds"}}
OUT = {"class": "logging.StreamHandler", "formatter": "own", "filters": ["ids"]}
ROOT_LOGGER = {"level": "INFO", "handlers": ["out"]}


def config_of(formatter: dict[str, Any], handler: dict[str, Any] = OUT) -> dict[str, Any]:
    return {"filters": FILTERS, "formatters": {"own": formatter}, "handlers": {"out": handler}, "root": ROOT_LOGGER}


def output_with(directory: Path, name: str, text: str) -> str:
    """What a server with this file writes for one request."""
    (directory / "log_app.py").write_text(APPLICATION)
    (directory / name).write_text(text)
    arguments = ("log_app:app", "--threads=1", "--port={port}", "--xheaders", f"--log_config={name}")
    with Frontend(("-m", "threadbridge", *arguments), cwd=directory) as server:
        assert requests.get(f"{server.url}/a", headers={"X-Request-ID": "r-1"}, timeout=30).text == "hello"
        assert server.stop() == 0
        return server.output()


JSON_LOGGER = {
    "()": "pythonjsonlogger.json.JsonFormatter",
    "format": "%(levelname)s %(name)s %(request_id)s %(message)s",
}
TOML = """
[filters.ids]
"()" = "threadbridge.process.logs.RequestIds"
[formatters.json]
"()" = "pythonjsonlogger.json.JsonFormatter"
format = "%(asctime)s %(levelname)s %(name)s %(request_id)s %(message)s"
[handlers.out]
class = "logging.StreamHandler"
formatter = "json"
filters = ["ids"]
[root]
level = "INFO"
handlers = ["out"]
"""


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("log.toml", TOML),
        ("log.json", json.dumps(config_of(JSON_LOGGER))),
        ("log.yaml", yaml.safe_dump(config_of(JSON_LOGGER))),
    ],
)
def test_python_json_logger_in_each_format(name: str, text: str, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in output_with(tmp_path, name, text).splitlines() if line.startswith("{")]
    [asked] = [line for line in lines if line["name"] == "shop"]
    assert (asked["message"], asked["request_id"], asked["levelname"]) == ("asked for /a", "r-1", "WARNING")
    [access] = [line for line in lines if line["name"] == "tornado.access"]
    assert (access["request_id"], access["status"], access["target"], access["ending"]) == ("r-1", 200, "/a", "done")
    assert any(line["message"] == "stopped, every request is answered" for line in lines)


def test_structlog(tmp_path: Path) -> None:
    (tmp_path / "own_formatter.py").write_text(
        "import structlog\n"
        "def make():\n"
        "    processors = [structlog.stdlib.ProcessorFormatter.remove_processors_meta,\n"
        "                  structlog.processors.JSONRenderer(sort_keys=True)]\n"
        "    before = [structlog.stdlib.add_log_level, structlog.stdlib.ExtraAdder(['request_id'])]\n"
        "    return structlog.stdlib.ProcessorFormatter(processors=processors, foreign_pre_chain=before)\n"
    )
    text = json.dumps(config_of({"()": "own_formatter.make"}))
    lines = output_with(tmp_path, "log.json", text).splitlines()
    assert not any("Traceback" in line for line in lines), "\n".join(lines)
    found = [json.loads(line) for line in lines if line.startswith("{")]
    assert {"event": "asked for /a", "level": "warning", "request_id": "r-1"} in found
    assert sum(" ending=done " in line["event"] and line["request_id"] == "r-1" for line in found) == 1


def test_syslog(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log:
        log.bind(str(tmp_path / "log"))
        log.settimeout(30)
        handler: dict[str, Any] = {"class": "logging.handlers.SysLogHandler", "address": str(tmp_path / "log")}
        handler |= {"formatter": "own", "filters": ["ids"], ".": {"ident": "shop: "}}
        text = json.dumps(config_of({"format": "%(request_id)s %(message)s"}, handler))
        output_with(tmp_path, "log.json", text)
        received: list[str] = []
        while not any("every request is answered" in each for each in received):
            received.append(log.recv(65536).decode())
    # User-level messages, warning and info (RFC 3164).
    assert "<12>shop: r-1 asked for /a\0" in received
    assert sum(each.startswith("<14>shop: r-1 127.0.0.1 - - [") for each in received) == 1


SENTRY_APPLICATION = """
import os
import sentry_sdk

sentry_sdk.init(dsn=os.environ["DSN"])

def app(environ, start_response):
    raise LookupError("as asked")
"""


def test_sentry(tmp_path: Path) -> None:
    (tmp_path / "sentry_app.py").write_text(SENTRY_APPLICATION)
    events: SimpleQueue[dict[str, Any]] = SimpleQueue()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            for line in gzip.decompress(body).splitlines():
                found = json.loads(line)
                if "exception" in found:
                    events.put(found)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            """Not on the tests' standard error."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as receiver:
        threading.Thread(target=receiver.serve_forever, daemon=True).start()
        env = {"DSN": f"http://key@127.0.0.1:{receiver.server_port}/1"}
        command = ("-m", "threadbridge", "sentry_app:app", "--threads=1", "--port={port}", "--xheaders")
        with Frontend(command, env=env, cwd=tmp_path) as server:
            assert requests.get(server.url, headers={"X-Request-ID": "r-1"}, timeout=30).status_code == 500
            event = events.get(timeout=30)
            assert server.stop() == 0
        receiver.shutdown()
    assert event["logger"] == "threadbridge" and event["level"] == "error"
    assert event["logentry"]["params"] == ["r-1", "GET", "/"]
    assert event["exception"]["values"][-1]["type"] == "LookupError"
    assert event["extra"]["request_id"] == "r-1"


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("log.ini", "", "expected a file .toml, .json, .yaml or .yml"),
        ("log.toml", "a = ", "log.toml: Invalid value"),
        ("log.json", "[]", "expected a table with the keys of logging.config.dictConfig"),
        (
            "log.json",
            '{"root": {"handlers": ["none"]}}',
            "Unable to configure root logger: Unable to add handler 'none'",
        ),
        ("log.yaml", "a: [", "log.yaml: while parsing"),
        ("missing.toml", None, "log_config: missing.toml: missing.toml: No such file or directory"),
    ],
)
def test_a_file_that_cannot_be_used(name: str, text: str | None, complaint: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    command = [sys.executable, "-m", "threadbridge", "log_app:app", "--port=0", f"--log_config={name}"]
    env = {"PYTHONPATH": str(ROOT)}
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path, env=env, check=False)
    assert run.returncode == 2 and complaint in run.stderr and "Traceback" not in run.stderr, run.stderr
