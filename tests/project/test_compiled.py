"""The hot path compiled: it does what the sources do, and never what they did before somebody edited them."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.doctor_report import check_without_pool
from tests.support.installation import installed
from tests.support.processes import ROOT, Frontend
from threadbridge.compiled import BUILD_DIRECTORY, SWITCH, directory

compiled = pytest.mark.skipif(not directory().is_dir(), reason="not compiled; scripts/setup.sh does it")

APPLICATION = """
import logging, sys
import threadbridge.loop.bridge

def app(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/fails":
        raise LookupError("as asked")
    body = threadbridge.loop.bridge.__file__.encode() if path == "/file" else environ["wsgi.input"].read() or b"page"
    start_response("200 OK", [("Content-Type", "text/plain"), ("X-Query", environ["QUERY_STRING"])])
    return iter([body, body]) if path == "/streamed" else [body]

logging.basicConfig(level="INFO")
sys.exit(threadbridge.serve(app, threads=2, port={port}))
"""

REQUESTS = (
    b"GET /page?a=1&b HTTP/1.1\r\nHost: a\r\nAccept: */*\r\nConnection: close\r\n\r\n",
    b"HEAD /page HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    b"GET /streamed HTTP/1.0\r\n\r\n",
    b"GET /streamed HTTP/1.1\r\nHost: a\r\n\r\nGET /fails HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    b"POST /echo HTTP/1.0\r\nContent-Length: 5000\r\n\r\n" + b"text " * 1000,
    b"POST /echo HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n4\r\ntext\r\n0\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a:b\r\n\r\n",
    b"neither this\r\n\r\n",
)


def ask(server: Frontend, request: bytes) -> bytes:
    """All that comes back, without what is another each time."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client, client.makefile("rb") as answer:
        client.sendall(request)
        return re.sub(rb"(?m)^(Date|X-Request-ID): .*\r\n", b"", answer.read())


@compiled
def test_compiled_or_not_a_server_answers_the_same() -> None:
    answers = []
    for switch, suffix, how in (("1", b".so", ", compiled, on "), ("0", b".py", ", not compiled, on ")):
        with Frontend(("-c", APPLICATION), env={SWITCH: switch}) as server:
            assert ask(server, b"GET /file HTTP/1.0\r\n\r\n").endswith(suffix)
            answers.append([ask(server, request) for request in REQUESTS])
            assert how in server.output()
            assert server.stop() == 0
    of_compiled, of_sources = answers
    assert of_compiled == of_sources and all(of_sources)


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the package and of what was compiled of it."""
    monkeypatch.delenv(SWITCH, raising=False)
    shutil.copytree(ROOT / "threadbridge", tmp_path / "threadbridge", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(directory(), tmp_path / directory().relative_to(ROOT))
    return tmp_path


def runs_compiled(root: Path) -> bool:
    """Whether a program in this directory gets the compiled modules: all of them, or none."""
    code = (
        "import importlib, threadbridge.compiled as compiled; print(compiled.is_compiled())\n"
        "for name in compiled.MODULES: print(importlib.import_module('threadbridge.' + name).__file__)"
    )
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    run = subprocess.run([sys.executable, "-c", code], cwd=root, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    answer, *files = run.stdout.splitlines()
    assert {Path(file).suffix for file in files} == {".so" if answer == "True" else ".py"}
    assert all(Path(file).is_relative_to(root) for file in files)
    return answer == "True"


@compiled
@pytest.mark.parametrize("name", ["bridge.py", "spool.py", "new.py"])
def test_who_edits_a_source_gets_what_it_says_now(copy: Path, name: str) -> None:
    assert runs_compiled(copy)
    source = copy / "threadbridge" / name
    before = source.read_bytes() if source.exists() else None
    source.write_bytes((before or b"") + b"\n")
    assert not runs_compiled(copy)
    report = check_without_pool(copy)
    assert (report.level("hot path"), report.status) == ("warning", 1)
    if before is None:
        source.unlink()
    else:
        source.write_bytes(before)
    assert runs_compiled(copy)
    assert check_without_pool(copy).message("hot path") == "compiled"


@compiled
def test_what_was_compiled_for_another_python_is_not_taken(copy: Path) -> None:
    mine = copy / directory().relative_to(ROOT)
    mine.rename(mine.with_name(mine.name.replace(sys.implementation.cache_tag or "", "cpython-310")))
    assert not runs_compiled(copy)


def test_without_a_compiler_the_application_starts_all_the_same() -> None:
    with installed() as site:
        shutil.rmtree(site.directory / BUILD_DIRECTORY.relative_to(ROOT), ignore_errors=True)
        # It has no setup.py.
        for says in ("The hot path cannot be compiled, see ", "The hot path could not be compiled, see "):
            run = subprocess.run(
                ["dash", site.directory / "scripts" / "setup.sh", "application"], capture_output=True, text=True
            )
            assert run.returncode == 0 and says in run.stderr
            [log] = re.findall(r"see (.*?)[;,]", run.stderr)
            assert "setup.py" in (site.directory / log).read_text()
        assert not runs_compiled(site.directory)
