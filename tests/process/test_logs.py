"""The process's logs: their files, their formats, and the request's id in what the application logs."""

from __future__ import annotations

import json
import re
import resource
import signal
from collections.abc import Mapping
from pathlib import Path

import pytest
import requests

from tests.support.inprocess import wait_until
from tests.support.processes import Frontend
from threadbridge.compiled import PACKAGE, SWITCH
from threadbridge.process.logs import access_log_path

APPLICATION = """
import logging
from threadbridge.process.logs import RequestIds

logger = logging.getLogger("app")
own = logging.FileHandler("own.log", mode="w")
own.setFormatter(logging.Formatter("%(request_id)s|%(message)s"))
own.addFilter(RequestIds())
logger.addHandler(own)
logger.warning("imported")

def app(environ, start_response):
    logger.warning("asked for %s", environ["PATH_INFO"])
    headers = [("Content-Type", "text/plain")]
    if environ["PATH_INFO"] == "/names-itself":
        headers.append(("x-request-id", "own"))
    if environ["PATH_INFO"] == "/fails":
        raise LookupError("as\\nasked")
    start_response("200 OK", headers)
    return [b"hello"]
"""


class Site(Frontend):
    """That application, which trusts proxies on loopback, with its logs in the directory."""

    def __init__(self, directory: Path, *arguments: str, env: Mapping[str, str] | None = None) -> None:
        (directory / "log_app.py").write_text(APPLICATION)
        command = ("-m", "threadbridge", "log_app:app", "--threads=2", "--port={port}", "--xheaders", *arguments)
        super().__init__(command, env=env, cwd=directory)


def get(server: Frontend, path: str, request_id: str) -> requests.Response:
    return requests.get(f"{server.url}{path}", headers={"X-Request-ID": request_id}, timeout=10)


def test_the_request_is_named_to_the_client_and_in_all_logs(tmp_path: Path) -> None:
    with Site(tmp_path, "--log_file_prefix=site.log") as server:
        assert get(server, "/a", "r-1").headers["X-Request-ID"] == "r-1"
        made = get(server, "/b", "not fit;").headers["X-Request-ID"]
        assert re.fullmatch(r"[0-9a-f]+-[0-9a-f]{6,}", made)
        assert get(server, "/names-itself", "r-2").headers["X-Request-ID"] == "own"
        failed = get(server, "/fails", "r-3")
        assert (failed.status_code, failed.headers["X-Request-ID"]) == (500, "r-3")
        assert server.stop() == 0
    log = (tmp_path / "site.log").read_text()
    assert re.search(r"^\[W \d{6} \d\d:\d\d:\d\d log_app:\d+\] imported$", log, re.MULTILINE)
    assert re.search(r"^\[W \d{6} \d\d:\d\d:\d\d log_app:\d+ r-1\] asked for /a$", log, re.MULTILINE)
    assert re.search(r"^\[E .* r-3\] request r-3 failed: GET /fails\n    Traceback", log, re.MULTILINE)
    access = (tmp_path / "site.access.log").read_text()
    assert re.findall(r" id=(\S+) .* ending=(\w+)", access, re.MULTILINE) == [
        *(("r-1", "done"), (made, "done"), ("r-2", "done"), ("r-3", "failed")),
    ]
    assert (tmp_path / "own.log").read_text().splitlines() == [
        *("|imported", "r-1|asked for /a", f"{made}|asked for /b", "r-2|asked for /names-itself"),
        "r-3|asked for /fails",
    ]


def test_json(tmp_path: Path) -> None:
    with Site(tmp_path, "--log_json", "--log_file_prefix=site.log") as server:
        get(server, "/a?b", "r-1")
        get(server, "/fails", "r-2")
        assert server.stop() == 0
    logged = [json.loads(line) for line in (tmp_path / "site.log").read_text().splitlines()]
    by_message = {each["message"]: each for each in logged}
    asked, failed = by_message["asked for /a"], by_message["request r-2 failed: GET /fails"]
    assert (asked["level"], asked["logger"], asked["request_id"]) == ("warning", "app", "r-1")
    assert "Traceback" in failed["traceback"] and "as\nasked" in failed["traceback"]
    assert by_message["imported"]["request_id"] == ""
    access = [json.loads(line) for line in (tmp_path / "site.access.log").read_text().splitlines()]
    shown = [(each["request_id"], each["target"], each["status"], each["ending"]) for each in access]
    assert shown == [("r-1", "/a?b", 200, "done"), ("r-2", "/fails", 500, "failed")]
    assert asked["time"] <= access[0]["time"] and access[0]["total_ms"] >= access[0]["run_ms"] > 0


def test_without_a_log_file_the_lines_of_the_access_log_stand_bare_among_the_others(tmp_path: Path) -> None:
    with Site(tmp_path) as server:
        get(server, "/a", "r-1")
        assert server.stop() == 0
        lines = server.output().splitlines()
    [line] = [line for line in lines if " id=r-1 " in line]
    assert line.startswith("127.0.0.1 - - [") and line.endswith(" ending=done class=unknown expected=50.0")


@pytest.mark.parametrize("arguments", [("--access_log=false",), ("--logging=warning",)])
def test_without_an_access_log(arguments: tuple[str, ...], tmp_path: Path) -> None:
    with Site(tmp_path, "--log_file_prefix=site.log", *arguments) as server:
        get(server, "/a", "r-1")
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: "asked for /a" in (tmp_path / "site.log").read_text(), "the log is written")
        assert server.stop() == 0
        assert " id=r-1 " not in server.output()
    files = [tmp_path / "site.log", *tmp_path.glob("site.access.log")]
    assert not any(" id=r-1 " in file.read_text() for file in files)


def test_a_log_that_cannot_be_written_costs_a_few_lines_elsewhere_and_no_request(tmp_path: Path) -> None:
    with Site(tmp_path, "--log_file_prefix=site.log") as server:
        file = tmp_path / "site.access.log"
        for number in range(50):
            get(server, "/a", f"before-{number}")
        wait_until(lambda: "id=before-49 " in file.read_text(), "the log is written")
        # As if the disk were full.
        _, most = resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (file.stat().st_size, most))
        for number in range(5):
            assert get(server, "/a", f"full-{number}").status_code == 200
            wait_until(lambda: "lines are lost" in server.output(), "it is told")
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (most, most))
        assert get(server, "/a", "after").status_code == 200
        wait_until(lambda: "id=after " in file.read_text(), "it is written again")
        assert server.output().count("site.access.log, so lines are lost: File too large") == 1
        assert "Traceback" not in server.output()


def test_a_log_that_was_removed_is_made_anew_at_sighup(tmp_path: Path) -> None:
    with Site(tmp_path, "--log_file_prefix=site.log") as server:
        file = tmp_path / "site.access.log"
        get(server, "/a", "before")
        wait_until(lambda: "id=before " in file.read_text(), "the log is written")
        file.unlink()
        assert get(server, "/a", "removed").status_code == 200
        server.process.send_signal(signal.SIGHUP)
        wait_until(file.exists, "it is made")
        get(server, "/a", "after")
        wait_until(lambda: "id=after " in file.read_text(), "it is written")
        assert server.stop() == 0


def test_sighup_keeps_what_an_application_has_logged_in_a_file_of_its_own(tmp_path: Path) -> None:
    file, moved = tmp_path / "own.log", tmp_path / "own.log.1"
    with Site(tmp_path) as server:
        # The application's handler was made with mode "w".
        get(server, "/a", "before")
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: server.output().count("SIGHUP") == 1, "it is done")
        assert file.read_text().splitlines()[1:] == ["before|asked for /a"]
        file.rename(moved)
        server.process.send_signal(signal.SIGHUP)
        wait_until(file.exists, "it is made")
        get(server, "/a", "after")
        assert server.stop() == 0
    assert moved.read_text().splitlines()[1:] == ["before|asked for /a"]
    assert file.read_text() == "after|asked for /a\n"


@pytest.mark.parametrize("compiled", ["0", "1"])
def test_places_are_those_of_the_calls_that_log(tmp_path: Path, compiled: str) -> None:
    with Site(tmp_path, env={SWITCH: compiled}) as server:
        get(server, "/fails", "r-1")
        contradiction = {"X-Real-IP": "192.0.2.1", "X-Forwarded-For": "192.0.2.2"}
        requests.get(server.url, headers=contradiction, timeout=10)
        assert server.stop() == 0
        output = server.output()
    for message, module, call in (
        ("asked for /fails", tmp_path / "log_app.py", "logger.warning("),
        ("request r-1 failed", PACKAGE / "worker" / "wsgi.py", "logger.exception("),
        ("a trusted proxy sends", PACKAGE / "http" / "forwarded.py", "self._contradictions.log("),
    ):
        found = re.search(rf"^\[. \d{{6}} \S+ ([\w:]+)(?: \S+)?\] {message}", output, re.MULTILINE)
        assert found is not None
        name, _, line = found[1].partition(":")
        if ", compiled, on " in output and module.is_relative_to(PACKAGE):
            # No frame of the calling function is there to be found.
            assert (name, line) == ("threadbridge", "")
        else:
            assert name == module.stem and call in module.read_text().splitlines()[int(line) - 1]


def test_where_the_access_log_is() -> None:
    assert access_log_path("logs/app.8000.log") == "logs/app.8000.access.log"
    assert access_log_path("/var/log/x/app") == "/var/log/x/app.access.log"
    assert access_log_path("/var/log.d/app.out") == "/var/log.d/app.out.access.log"
