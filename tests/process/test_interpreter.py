"""The event loop, the switch interval and the garbage collector, as settings make them; each in a process."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests

from tests.support.processes import ROOT, Frontend

APPLICATION = """
import gc, sys
from threadbridge import serve

def app(environ, start_response):
    length = int(environ.get("CONTENT_LENGTH") or 0)
    body = environ["wsgi.input"].read() or b"%g %d" % (sys.getswitchinterval(), gc.get_freeze_count() > 1000)
    start_response("200 OK", [("Content-Type", "text/plain")])
    if length < 1000:
        return [body]
    return (body[start : start + 65536] for start in range(0, length, 65536))

sys.exit(serve(app, threads=2, port={port}, KEYWORDS))
"""


def frontend(keywords: str) -> Frontend:
    return Frontend(("-c", APPLICATION.replace("KEYWORDS", keywords)))


def uses_uvloop(server: Frontend) -> bool:
    with open(f"/proc/{server.process.pid}/maps") as maps:
        return "uvloop" in maps.read()


@pytest.mark.parametrize(("loop", "is_uvloop"), [("asyncio", False), ("uvloop", True), ("auto", True)])
def test_the_loop_that_is_asked_for_serves_and_stops(loop: str, is_uvloop: bool) -> None:
    big = bytes(range(256)) * 8192
    with frontend(f"loop={loop!r}") as server:
        assert uses_uvloop(server) is is_uvloop
        with requests.Session() as session:
            for _ in range(3):
                assert session.get(server.url, timeout=30).status_code == 200
                assert session.post(server.url, data=big, timeout=30).content == big
        with ThreadPoolExecutor(8) as clients:
            answers = clients.map(
                lambda number: requests.post(server.url, data=number, timeout=30).text, map(str, range(50))
            )
            assert list(answers) == [str(number) for number in range(50)]
        server.process.terminate()
        assert server.process.wait(30) == 0


def test_threads_take_turns_as_often_as_is_set_and_what_is_loaded_is_no_garbage() -> None:
    with frontend("switch_interval=0.002") as server:
        assert requests.get(server.url, timeout=30).text == "0.002 1"
    with frontend("") as server:
        assert requests.get(server.url, timeout=30).text == "0.005 1"


def test_a_loop_that_is_not_installed_is_named() -> None:
    code = (
        "import sys; sys.modules['uvloop'] = None\n"
        "from threadbridge import serve; serve(print, threads=1, loop='uvloop')"
    )
    finished = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert finished.returncode != 0
    assert "uvloop is not installed" in finished.stderr
