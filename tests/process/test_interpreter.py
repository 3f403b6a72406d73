"""The event loop, the switch interval and the garbage collector, as settings make them; each in a process."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests

from tests.support.inprocess import wait_until
from tests.support.processes import ROOT, Frontend
from threadbridge.common.interpreter import describe, is_free_threaded

APPLICATION = """
import gc, logging, sys
from threadbridge import serve

logging.basicConfig(level=logging.INFO)

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
    # Free-threaded Python would collect garbage more often.
    is_frozen = 0 if is_free_threaded() else 1
    with frontend("switch_interval=0.002") as server:
        assert requests.get(server.url, timeout=30).text == f"0.002 {is_frozen}"
    with frontend("") as server:
        assert requests.get(server.url, timeout=30).text == f"0.005 {is_frozen}"
        wait_until(lambda: f"{describe()}, " in server.output(), "the log names the interpreter")


@pytest.mark.skipif(not is_free_threaded(), reason="this Python always has its lock")
@pytest.mark.parametrize("lock", ["0", "1"])
def test_the_log_says_whether_the_lock_is_on_and_affinity_is_off_without_it(lock: str) -> None:
    with Frontend(("-c", APPLICATION.replace("KEYWORDS", "")), env={"PYTHON_GIL": lock}) as server:
        # More than Affinity looks at: a loop that computes for more than its interval.
        for _ in range(3):
            requests.post(server.url, data=bytes(20_000_000), timeout=60)
        wait_until(lambda: "free-threaded, " in server.output(), "the log names the interpreter")
        assert ("without a lock" in server.output()) is (lock == "0")
        assert ("threads run Python code in turn, as the lock is on" in server.output()) is (lock == "1")
        if lock == "0":
            tasks = os.listdir(f"/proc/{server.process.pid}/task")
            assert all(os.sched_getaffinity(int(task)) == os.sched_getaffinity(0) for task in tasks)


def test_a_loop_that_is_not_installed_is_named() -> None:
    code = (
        "import sys; sys.modules['uvloop'] = None\n"
        "from threadbridge import serve; serve(print, threads=1, loop='uvloop')"
    )
    finished = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert finished.returncode != 0
    assert "uvloop is not installed" in finished.stderr
