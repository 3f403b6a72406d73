"""Threads stay on one processor as long as they do not use more, in real processes under load."""

from __future__ import annotations

import os
import random
import resource
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import requests

from tests.support.inprocess import wait_until
from tests.support.processes import Frontend
from threadbridge.common.interpreter import lock_is_on
from threadbridge.process.affinity import TRIAL, Affinity, choose

ALL = os.sched_getaffinity(0)

pytestmark = [
    pytest.mark.alone,
    pytest.mark.skipif(len(ALL) < 2, reason="there is one processor only"),
    pytest.mark.skipif(not lock_is_on(), reason="without the lock, threads are left to the kernel"),
]

APPLICATION = """
import hashlib, os, random, subprocess, sys, time
from threadbridge import serve

random.seed(7)

def forked():
    reading, writing = os.pipe()
    if os.fork() == 0:
        os.write(writing, b"%d" % len(os.sched_getaffinity(0)))
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        return pipe.read()

def app(environ, start_response):
    path = environ["PATH_INFO"]
    answer = b"done"
    if path == "/takes-turns":
        end = time.thread_time() + 0.05
        while time.thread_time() < end:
            pass
    elif path == "/side-by-side":
        hashlib.pbkdf2_hmac("sha256", b"password", b"salt", 200_000)
    elif path == "/subprocess":
        # As many processors as it may use.
        answer = subprocess.check_output(["nproc"])
    elif path == "/system":
        answer = b"%d" % (os.system("exit $(nproc)") >> 8)
    elif path == "/fork":
        answer = forked()
    elif path in ("/spawn", "/forkserver"):
        import multiprocessing
        from concurrent.futures import ProcessPoolExecutor
        with ProcessPoolExecutor(1, multiprocessing.get_context(path[1:])) as executor:
            answer = b"%d" % len(executor.submit(os.sched_getaffinity, 0).result())
    elif path == "/random":
        answer = repr(random.random()).encode()
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [answer]

sys.exit(serve(app, threads=4, port={port}, KEYWORDS))
"""

# Before it serves, so that later no module of `multiprocessing` is loaded any more.
USES_A_PROCESS = """
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as executor:
    executor.submit(len, "").result()
"""


@pytest.fixture(autouse=True)
def before_all_others() -> Iterator[None]:
    """Give what is started here the processors first: else these tests are about what the machine does beside them.

    Only root can. The kernel compares sessions (autogroups), where it has them, and then the threads of each.
    """

    def set_priority(nice: int) -> None:
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, 0, nice)
            Path("/proc/self/autogroup").write_text(str(nice))

    before = os.getpriority(os.PRIO_PROCESS, 0)
    set_priority(-18)
    yield
    set_priority(before)


def frontend(keywords: str = "", imports: str = "") -> Frontend:
    return Frontend(("-c", imports + APPLICATION.replace("KEYWORDS", keywords)))


@contextmanager
def under_load(url: str, clients: int) -> Iterator[None]:
    stop = threading.Event()

    def ask() -> None:
        with requests.Session() as session:
            while not stop.is_set():
                session.get(url, timeout=60)

    threads = [threading.Thread(target=ask) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def affinities(process: int) -> set[frozenset[int]]:
    found = set()
    for thread in os.listdir(f"/proc/{process}/task"):
        # One that has ended since it was listed does not count.
        with suppress(ProcessLookupError):
            found.add(frozenset(os.sched_getaffinity(int(thread))))
    return found


def are_together(process: int) -> bool:
    return [len(each) for each in affinities(process)] == [1]


def are_left_alone(process: int) -> bool:
    return affinities(process) == {frozenset(ALL)}


def test_threads_that_take_turns_are_kept_together_and_what_they_start_is_not() -> None:
    with frontend() as server, frontend("affinity='none'") as other:
        assert are_left_alone(server.process.pid)
        with under_load(server.url + "/takes-turns", 3), under_load(other.url + "/takes-turns", 1):
            # The server of the method forkserver is started once, so that comes first.
            for path, times in (("/forkserver", 1), ("/spawn", 5), ("/subprocess", 10), ("/system", 10), ("/fork", 10)):
                wait_until(lambda: are_together(server.process.pid), "the threads share a processor", 30)
                seen = [int(requests.get(server.url + path, timeout=30).text) for _ in range(times)]
                assert seen == [len(ALL)] * times, path
            wait_until(lambda: are_together(server.process.pid), "the threads share a processor again", 30)
            assert are_left_alone(other.process.pid)


def test_a_child_that_was_bound_to_the_same_processor_stays_there() -> None:
    affinity = Affinity()
    first, second, *_ = sorted(ALL)
    with subprocess.Popen(["sleep", "600"]) as child:
        try:
            os.sched_setaffinity(child.pid, {first})
            for processor in (first, second, None):
                affinity._keep_on(processor)
                assert os.sched_getaffinity(child.pid) == {first}
        finally:
            affinity._keep_on(None)
            child.kill()


def test_an_application_that_seeds_the_random_generator_gets_the_numbers_of_its_seed() -> None:
    with frontend() as server, requests.Session() as session:
        with under_load(server.url + "/takes-turns", 3):
            wait_until(lambda: are_together(server.process.pid), "there was a look at the threads", 30)
        seen = [float(session.get(server.url + "/random", timeout=30).text) for _ in range(20)]
    expected = random.Random(7)
    assert seen == [expected.random() for _ in range(20)]


def test_threads_that_can_use_several_processors_are_let_go_for_good() -> None:
    with frontend(imports=USES_A_PROCESS) as server:
        with under_load(server.url + "/takes-turns", 3):
            wait_until(lambda: are_together(server.process.pid), "the threads share a processor", 30)
            assert int(requests.get(server.url + "/spawn", timeout=30).text) == len(ALL)
        seen_alone = 0

        def are_let_go() -> bool:
            nonlocal seen_alone
            seen_alone = seen_alone + 1 if are_left_alone(server.process.pid) else 0
            # For longer than a trial takes.
            return seen_alone > 4 * TRIAL / 0.005

        with under_load(server.url + "/side-by-side", 4):
            wait_until(are_let_go, "the threads may use all processors", 90)


def test_threads_are_let_go_though_there_was_no_file_descriptor_for_a_look() -> None:
    affinity = Affinity()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        affinity._keep_on(min(ALL))
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
        with pytest.raises(OSError, match="Too many open files"):
            affinity._keep_on(None)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert os.sched_getaffinity(0) == {min(ALL)}
        affinity._keep_on(None)
        assert os.sched_getaffinity(0) == ALL
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        os.sched_setaffinity(0, ALL)


IDLE = {0: 0.0, 1: 0.9, 2: 0.5}


@pytest.mark.parametrize(
    ("processor", "busy", "is_patient", "coin", "chosen"),
    [
        pytest.param(None, 0.05, True, 0.0, None, id="idle"),
        pytest.param(None, 0.5, True, 0.0, 1, id="at work: on the idlest"),
        pytest.param(None, 1.2, False, 0.0, 1, id="taking turns on several"),
        pytest.param(None, 1.8, False, 0.0, None, id="side by side"),
        pytest.param(0, 0.95, True, 0.0, 0, id="full"),
        pytest.param(0, 0.95, False, 0.0, None, id="full: a trial"),
        pytest.param(0, 0.5, False, 0.2, 1, id="full with others, and another is idle"),
        pytest.param(0, 0.5, False, 0.7, 0, id="the other process goes"),
        pytest.param(0, 0.8, False, 0.2, 0, id="full with others, and another offers little more"),
        pytest.param(2, 0.5, False, 0.2, 2, id="room enough"),
        pytest.param(2, 0.0, False, 0.2, 2, id="idle where it was"),
    ],
)
def test_the_choice(processor: int | None, busy: float, is_patient: bool, coin: float, chosen: int | None) -> None:
    assert choose(processor, busy, IDLE, is_patient=is_patient, coin=coin) == chosen
