"""What becomes of requests while the store of outcomes cannot be used, and afterwards."""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.support.idempotent import Application, begin, detail, is_replayed, opened, outcome, post, serve
from tests.support.inprocess import BridgeThread
from threadbridge.worker import idempotency_file
from threadbridge.worker.idempotency_store import StoreError


def store_lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if "idempotency store" in each.getMessage()]


def test_a_locked_store_runs_nothing_until_it_is_free(
    application: Application,
    serving: Callable[..., BridgeThread],
    path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(idempotency_file, "BUSY_TIMEOUT", 0.1)
    with serving() as server:
        assert post(server, key="first")[0].status == 201
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        for _ in range(3):
            response, body = post(server)
            assert response.status == 503 and "The request was not run" in detail(body)
            assert response.headers["Retry-After"] == "5"
        assert server.request()[0].status == 201, "other requests are served"
        other.close()
        assert post(server)[0].status == 201
    assert application.runs == 3
    first, last = store_lines(caplog)
    assert "cannot be used: database is locked" in first and "can be used again" in last


def test_an_outcome_that_cannot_be_stored_is_never_run_again(
    application: Application,
    serving: Callable[..., BridgeThread],
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(idempotency_file, "BUSY_TIMEOUT", 0.1)
    with serving() as server:
        post(server, key="first")
        answers: list[int] = []
        thread = threading.Thread(target=lambda: answers.append(post(server, path="/pay/waits")[0].status))
        thread.start()
        assert application.entered.acquire(timeout=10)
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        application.go_on.set()
        thread.join()
        assert answers == [201], "the client that is there gets its answer"
        other.close()
        response, body = post(server, path="/pay/waits")
        assert response.status == 409 and "could not be stored" in detail(body)
        assert "Retry-After" not in response.headers
    assert application.runs == 2


def test_a_broken_store_is_over_when_it_is_moved_away(
    application: Application, serving: Callable[..., BridgeThread], path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path.write_bytes(b"no database" * 1000)
    with serving() as server:
        assert post(server)[0].status == 503 and application.runs == 0
        path.rename(path.with_suffix(".broken"))
        assert post(server)[0].status == 201 and is_replayed(post(server)[0])
        # The same while it is open, with what is beside it.
        path.unlink()
        assert post(server)[0].status == 201
    assert application.runs == 2
    assert "file is not a database" in store_lines(caplog)[0]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "none", disk], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no small disk: {mounted.stderr}")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def test_a_full_disk_runs_nothing_until_there_is_room(
    application: Application,
    small_disk: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with serve(application, small_disk / "outcomes.sqlite") as server:
        assert post(server, key="first")[0].status == 201
        statuses: list[int] = []
        with open(small_disk / "filler", "wb", buffering=0) as filler:
            # The file has some room left, and gives some back when it is closed.
            while statuses[-3:] != [503] * 3:
                with contextlib.suppress(OSError):
                    while True:
                        filler.write(bytes(4096))
                statuses.append(post(server, key=f"k{len(statuses)}")[0].status)
                assert len(statuses) < 500
        assert application.runs == 1 + statuses.count(201)
        (small_disk / "filler").unlink()
        refused = f"k{len(statuses) - 1}"
        assert post(server, key=refused)[0].status == 201
        assert is_replayed(post(server, key=refused)[0])
        assert is_replayed(post(server, key="first")[0])
    assert "full" in store_lines(caplog)[0] and "can be used again" in store_lines(caplog)[-1]


def test_a_disk_that_is_full_when_the_file_is_made_is_over_too(small_disk: Path) -> None:
    """Wherever in the making it gets full."""
    path, filler = small_disk / "outcomes.sqlite", small_disk / "filler"
    refused, descriptors = 0, len(os.listdir("/proc/self/fd"))
    for room in range(0, 160 * 1024, 4096):
        with open(filler, "wb", buffering=0) as file:
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(4096))
            file.truncate(max(0, file.tell() - room))
        with opened(path) as store:
            try:
                assert begin(store, b"k") is None
            except StoreError:
                refused += 1
                filler.unlink()
                assert begin(store, b"k") is None, room
        for left in small_disk.iterdir():
            left.unlink()
        assert len(os.listdir("/proc/self/fd")) == descriptors, room
    assert 5 < refused < 40


def test_a_directory_that_another_has_locked_is_not_waited_for(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idempotency_file, "BUSY_TIMEOUT", 0.1)
    with opened(path) as store, opened(path) as other:
        directory = os.open(path.parent, os.O_RDONLY)
        fcntl.flock(directory, fcntl.LOCK_EX)
        for each in (store, other):
            with pytest.raises(StoreError, match="temporarily unavailable"):
                begin(each, b"k")
        os.close(directory)
        assert begin(other, b"k") is None and begin(store, b"k") is not None


def test_a_file_that_is_removed_at_any_moment_is_made_again(path: Path) -> None:
    """Never an empty one, which would stay."""
    removing = "import pathlib, sys\nwhile True:\n    pathlib.Path(sys.argv[1]).unlink(missing_ok=True)"
    failures: list[str] = []
    with opened(path) as store:
        with subprocess.Popen([sys.executable, "-c", removing, path]) as remover:
            for number in range(300):
                try:
                    assert begin(store, b"%d" % number) is None
                except StoreError as error:
                    failures.append(str(error))
            remover.kill()
        assert not [failure for failure in failures if "format" in failure]
        assert begin(store, b"k") is None and begin(store, b"k") is not None


def test_a_file_that_others_may_write_to_is_not_used(path: Path) -> None:
    with opened(path) as store:
        assert begin(store, b"k") is None
        path.chmod(0o660)
        with pytest.raises(StoreError, match="others may write to it"):
            begin(store, b"k")
        path.chmod(0o640)
        assert begin(store, b"k") is not None


def test_a_key_that_is_to_be_forgotten_is_so_when_the_store_can_be_used_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idempotency_file, "BUSY_TIMEOUT", 0.1)
    with opened(path) as store:
        assert begin(store, b"k") is None
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            store.end(b"k", None)
        assert begin(store, b"k") is None
        # Only once: now it runs.
        assert begin(store, b"other") is None
        assert outcome(store, b"k") is None


def test_without_file_descriptors_nobody_is_taken_for_dead(path: Path) -> None:
    with opened(path) as store:
        assert begin(store, b"k") is None
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
        try:
            assert begin(store, b"new") is None
            with pytest.raises(StoreError, match="Too many open files"):
                begin(store, b"k")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for key in (b"k", b"new"):
            assert outcome(store, key) is None
