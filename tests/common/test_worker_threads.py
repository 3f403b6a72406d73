"""Threads that are called again soon do not go back to their executor, and do not keep a process from ending."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from tests.support.inprocess import wait_until
from tests.support.processes import ROOT
from threadbridge.common.worker_threads import WorkerThreads


class Crew:
    """Threads that each time say which of them works, and wait until they may end."""

    def __init__(self, threads: int) -> None:
        self.lock = threading.Lock()
        self.threads = WorkerThreads("crew", threads, self._work, self.lock)
        self.worked: list[int] = []
        self.may_end = threading.Semaphore(0)
        self.ended = threading.Semaphore(0)
        self.submitted = 0
        submit = self.threads._executor.submit

        def counted(*arguments: object) -> object:
            self.submitted += 1
            return submit(*arguments)  # type: ignore[arg-type]

        self.threads._executor.submit = counted  # type: ignore[method-assign,assignment]

    def _work(self) -> None:
        self.worked.append(threading.get_ident())
        assert self.may_end.acquire(timeout=30)
        with self.lock:
            self.threads.release()
        self.ended.release()

    def call(self) -> None:
        with self.lock:
            assert self.threads.call()

    def end_one(self) -> None:
        self.may_end.release()
        assert self.ended.acquire(timeout=30)


@pytest.fixture(name="crew")
def made_crew(monkeypatch: pytest.MonkeyPatch) -> Iterator[Crew]:
    # Longer than a busy machine takes between two calls.
    monkeypatch.setattr("threadbridge.common.worker_threads.READY_FOR", 30.0)
    crew = Crew(2)
    yield crew
    monkeypatch.undo()
    crew.threads.close()
    with crew.lock:
        for waker in crew.threads._ready.values():
            crew.may_end.release()
            waker.release()
        crew.threads._ready.clear()


def test_a_thread_that_is_called_again_soon_is_not_asked_for_at_the_executor(crew: Crew) -> None:
    for _ in range(5):
        crew.call()
        crew.end_one()
    assert len(crew.worked) == 5 and len(set(crew.worked)) == 1
    assert crew.submitted == 1


def test_calls_at_once_have_a_thread_each(crew: Crew) -> None:
    crew.call()
    crew.call()
    crew.end_one()
    crew.end_one()
    first, second = set(crew.worked)
    del crew.worked[:]
    for _ in range(2):
        crew.call()
    crew.end_one()
    crew.end_one()
    assert sorted(crew.worked) == sorted((first, second))
    assert crew.submitted == 2


def test_a_thread_that_is_not_called_goes_back_to_the_executor_and_is_still_there() -> None:
    crew = Crew(1)
    for number in range(1, 4):
        crew.call()
        crew.end_one()
        wait_until(lambda: not crew.threads._ready, "it has gone back")
        assert crew.submitted == number
    assert len(set(crew.worked)) == 1
    crew.threads.close()
    crew.threads.join()


UNCLOSED = """
import threading
from threadbridge.common.worker_threads import WorkerThreads

lock, worked = threading.Lock(), threading.Event()

def work():
    with lock:
        threads.release()
    worked.set()

threads = WorkerThreads("unclosed", 1, work, lock)
with lock:
    threads.call()
assert worked.wait(30)
"""


def test_a_process_ends_although_nobody_has_closed_the_threads() -> None:
    finished = subprocess.run([sys.executable, "-c", UNCLOSED], cwd=ROOT, timeout=60, check=False)
    assert finished.returncode == 0
