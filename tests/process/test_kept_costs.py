"""What is learned of costs outlives a process, and other processes of the host know it too."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.inprocess import wait_until
from tests.support.processes import Frontend
from tests.support.site_process import Process, entered
from tests.support.supervised import PROGRAM, Supervised, finish
from threadbridge.crossing.cost_file import MAX_SIZE, decode, encode
from threadbridge.crossing.costs import Costs
from threadbridge.crossing.estimate import Estimate
from threadbridge.crossing.routes import Routes
from threadbridge.process.cost_keeper import CostKeeper

# How often the processes of these tests look at the file, in seconds.
OFTEN = 0.1


def often(server: Process, directory: Path) -> None:
    """Let the process look at the file all the time."""
    line = f"from threadbridge.process import cost_keeper\ncost_keeper.INTERVAL = {OFTEN}"
    (directory / "often.py").write_text(PROGRAM.format(line))
    server.command = [sys.executable, "often.py", *server.command[3:]]


class Site(Process):
    """Can be started several times. It looks at the file at its start and at its end, or all the time."""

    def __init__(
        self, directory: Path, *arguments: str, env: Mapping[str, str] | None = None, looks: bool = True
    ) -> None:
        super().__init__(directory, "--port={port}", *arguments, env=env)
        if looks:
            often(self, directory)

    # Not until it has said so, which it has before.
    start = Frontend.start


def files(directory: Path) -> list[Path]:
    # Without one that is being written.
    return sorted(path for path in directory.glob("costs-*") if path.suffix != ".new")


def counts(directory: Path) -> dict[str, int]:
    """How many costs have been learned of each path, according to the only file there."""
    if not files(directory):
        return {}
    [file] = files(directory)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    try:
        routes = [json.loads(line) for line in file.read_text().splitlines() if line.startswith('{"route"')]
    except ValueError:
        # It is one that a test has damaged.
        return {}
    return {route["route"][1]: route["cost"][6] for route in routes}


def ask(server: Process, number: int, target: str = "/") -> None:
    for _ in range(number):
        assert finish(server.begin(target))


def warnings_of(server: Process) -> list[str]:
    return [line for line in server.output().splitlines() if "cannot read" in line or "cannot save" in line]


# Whole servers.


def test_a_restart_forgets_nothing(tmp_path: Path) -> None:
    run = tmp_path / "run"
    flags = [tmp_path / name for name in ("done", "first", "second")]
    flags[0].touch()
    server = Site(tmp_path, f"--run_directory={run}", looks=False)
    with server:
        ask(server, 8, f"/slow?{flags[0]}")
        assert server.stop() == 0
        assert counts(run) == {"/slow": 8}
        server.start()
        # Known to be short, so that both run at once; of an unknown route, the second would wait for the first.
        clients = [server.begin(f"/slow?{flag}") for flag in flags[1:]]
        wait_until(lambda: all(entered(flag) for flag in flags[1:]), "both run")
        for flag in flags:
            flag.touch()
        assert all(finish(client) for client in clients)
        assert server.stop() == 0
        assert counts(run)["/slow"] >= 10
        assert warnings_of(server) == []


def test_a_reload_forgets_nothing(tmp_path: Path) -> None:
    run = tmp_path / "run"
    server = Supervised(tmp_path, f"--run_directory={run}")
    often(server, tmp_path)
    with server:
        old = server.wait_for_both()
        ask(server, 100)
        wait_until(lambda: counts(run).get("/", 0) >= 50, "the old processes have written")
        server.process.send_signal(signal.SIGUSR2)
        wait_until(lambda: server.pids().isdisjoint(old) and len(server.pids()) == 2, "others serve", 30)
        kept = counts(run)["/"]
        assert kept >= 50
        ask(server, 10)
        assert server.stop() == 0
        # One of them has answered five or more.
        assert kept + 5 <= counts(run)["/"] <= kept + 10
        assert warnings_of(server) == []


def test_a_killed_process_has_written_before(tmp_path: Path) -> None:
    run = tmp_path / "run"
    server = Site(tmp_path, f"--run_directory={run}")
    with server:
        ask(server, 5)
        wait_until(lambda: counts(run) == {"/": 5}, "it is written")
        server.stop(signal.SIGKILL)
        server.start()
        ask(server, 1)
        wait_until(lambda: counts(run) == {"/": 6}, "it was read")


def test_the_processes_of_a_host_share_what_they_learn(tmp_path: Path) -> None:
    run = tmp_path / "run"
    one = Site(tmp_path, f"--run_directory={run}")
    other = Site(tmp_path, f"--run_directory={run}")
    with one, other:
        ask(one, 20)
        wait_until(lambda: counts(run) == {"/": 20}, "one has written")
        ask(other, 1, "/other")
        wait_until(lambda: counts(run) == {"/": 20, "/other": 1}, "the other has read before it wrote")
        ask(other, 1)
        wait_until(lambda: counts(run) == {"/": 21, "/other": 1}, "it goes on from there")
        ask(one, 1, "/one")
        wait_until(lambda: counts(run) == {"/": 21, "/other": 1, "/one": 1}, "so has the first")
        ask(one, 1)
        wait_until(lambda: counts(run) == {"/": 22, "/other": 1, "/one": 1}, "it goes on from there, too")
        # Both write at the end.
        ask(one, 1, "/first")
        ask(other, 1, "/second")
        one.process.send_signal(signal.SIGTERM)
        assert other.stop() == one.process.wait(60) == 0
        assert counts(run) == {"/": 22, "/other": 1, "/one": 1, "/first": 1, "/second": 1}
        assert warnings_of(one) == warnings_of(other) == []


def test_without_a_setting_the_file_is_in_a_private_directory(tmp_path: Path) -> None:
    run = tmp_path / f"threadbridge-{os.geteuid()}"
    server = Site(tmp_path, env={"TMPDIR": str(tmp_path)}, looks=False)
    with server:
        ask(server, 3)
        assert server.stop() == 0
        assert counts(run) == {"/": 3}
        assert stat.S_IMODE(run.stat().st_mode) == 0o700
        server.start()
        ask(server, 1)
        assert server.stop() == 0
        assert counts(run) == {"/": 4}


def test_with_turns_alone_there_is_no_file(tmp_path: Path) -> None:
    run = tmp_path / f"threadbridge-{os.geteuid()}"
    server = Site(tmp_path, "--schedule=fair", env={"TMPDIR": str(tmp_path)})
    with server:
        ask(server, 3)
        assert server.stop() == 0
        assert not run.exists()


def test_a_damaged_file_is_reported_once_and_replaced(tmp_path: Path) -> None:
    run = tmp_path / "run"
    server = Site(tmp_path, f"--run_directory={run}")
    with server:
        ask(server, 5)
        assert server.stop() == 0
        [file] = files(run)
        file.write_bytes(file.read_bytes()[:-10])
        server.start()
        ask(server, 1)
        wait_until(lambda: counts(run) == {"/": 1}, "it is replaced")
        ask(server, 1)
        assert server.stop() == 0
        [line] = warnings_of(server)
        assert f"cannot read {file}" in line
        assert counts(run) == {"/": 2}


def test_requests_do_not_notice_that_nothing_can_be_written(tmp_path: Path) -> None:
    run = tmp_path / f"threadbridge-{os.geteuid()}"
    server = Site(tmp_path, env={"TMPDIR": str(tmp_path)})
    with server:
        # It is made soon after the server has begun to listen.
        wait_until(run.exists, "there is the directory")
        run.rmdir()
        run.touch()
        ask(server, 5)
        wait_until(lambda: warnings_of(server) != [], "it is reported")
        run.unlink()
        wait_until(lambda: counts(run) == {"/": 5}, "it is tried again")
        [line] = warnings_of(server)
        # The second, if it tried between the two.
        assert re.search(r"cannot save .*threadbridge-\d+: (File exists|No such file)", line), line
        assert server.stop() == 0


@contextmanager
def small_disk(directory: Path) -> Iterator[Path]:
    directory.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m,mode=700", "tmpfs", str(directory)]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no small disk can be mounted: {error}")
    try:
        yield directory
    finally:
        subprocess.run(["umount", str(directory)], check=True)


def test_requests_do_not_notice_a_full_disk(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        server = Site(tmp_path, f"--run_directory={disk}")
        with server:
            ask(server, 5)
            wait_until(lambda: counts(disk) == {"/": 5}, "it is written")
            with (disk / "filler").open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
                while file.write(bytes(4096)):
                    pass
            ask(server, 5)
            wait_until(lambda: warnings_of(server) != [], "it is reported")
            # What was written is still there, and nothing else.
            assert counts(disk) == {"/": 5}
            (disk / "filler").unlink()
            wait_until(lambda: counts(disk) == {"/": 10}, "it is tried again")
            [line] = warnings_of(server)
            assert "cannot save" in line and "No space left" in line
            assert server.stop() == 0


# The part that reads and writes.


class Keeper:
    """A `CostKeeper` with its costs."""

    def __init__(self, directory: Path, application: str = "app:app") -> None:
        self.costs = Costs()
        self.routes = Routes(self.costs)
        self.keeper = CostKeeper(self.costs, self.routes, str(directory), application)
        self.load, self.save = self.keeper.load, self.keeper.save

    def learn(self, number: int = 1, path: str = "/") -> None:
        for _ in range(number):
            self.costs.learn(Estimate(self.routes.find("GET", path).cost, path, "client"), 0.05)

    @property
    def count(self) -> int:
        return sum(route.cost.count for _, _, route in self.routes.all())


def written(directory: Path) -> Path:
    keeper = Keeper(directory)
    keeper.learn(5)
    keeper.save()
    [file] = files(directory)
    return file


def become_a_link(file: Path) -> None:
    file.rename(file.with_name("elsewhere"))
    file.symlink_to("elsewhere")


def become_a_pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def belong_to_another(file: Path) -> None:
    if os.geteuid():
        pytest.skip("only root can give files to others")
    os.chown(file, 65534, 65534)


UNUSABLE: dict[str, Callable[[Path], object]] = {
    "may be written by others": lambda file: file.chmod(0o620),
    "belongs to another": belong_to_another,
    "a link": become_a_link,
    "a pipe": become_a_pipe,
    "empty": lambda file: os.truncate(file, 0),
    "cut": lambda file: os.truncate(file, file.stat().st_size - 5),
    "huge": lambda file: os.truncate(file, 2**40),
    "longer than expected": lambda file: file.write_bytes(file.read_bytes() + b"\n" * 4 * MAX_SIZE),
    "another version": lambda file: file.write_text(file.read_text().replace('"version":1', '"version":2')),
    "a hostile number": lambda file: file.write_text(file.read_text().replace(",5,0", ",-5,0")),
}


@pytest.mark.parametrize("how", UNUSABLE)
def test_an_unusable_file_is_reported_once_and_replaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    file = written(tmp_path)
    UNUSABLE[how](file)
    keeper = Keeper(tmp_path)
    keeper.load()
    assert keeper.count == 0 and len(keeper.routes) == 0
    keeper.save()
    keeper.learn()
    keeper.save()
    [record] = caplog.records
    assert record.levelno == logging.WARNING and f"cannot read {file}" in record.getMessage()
    assert file.is_file() and not file.is_symlink()
    successor = Keeper(tmp_path)
    successor.load()
    assert successor.count == 1


def test_a_directory_in_place_of_the_file_stays(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = written(tmp_path)
    file.unlink()
    file.mkdir()
    keeper = Keeper(tmp_path)
    keeper.load()
    keeper.learn()
    for _ in range(3):
        keeper.save()
    assert [record.getMessage().partition(" ")[0] for record in caplog.records] == ["cannot", "cannot"]
    assert list(tmp_path.iterdir()) == [file]


def test_an_unsafe_directory_is_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = written(tmp_path)
    tmp_path.chmod(0o770)
    keeper = Keeper(tmp_path)
    keeper.load()
    keeper.learn()
    keeper.save()
    [record] = caplog.records
    assert "other users may write there" in record.getMessage()
    tmp_path.chmod(0o700)
    keeper.save()
    # What was there by then has been added.
    assert "/" in file.read_text() and keeper.count == 5


def test_applications_do_not_mix(tmp_path: Path) -> None:
    for application in ("a:app", "b:app", ""):
        keeper = Keeper(tmp_path, application)
        keeper.load()
        assert keeper.count == 0
        keeper.learn()
        keeper.save()
    assert len(files(tmp_path)) == 3


def test_nothing_new_is_not_written(tmp_path: Path) -> None:
    file = written(tmp_path)
    keeper = Keeper(tmp_path)
    keeper.load()
    before = file.stat()
    keeper.save()
    assert file.stat() == before
    keeper.learn()
    keeper.save()
    assert file.stat().st_ino != before.st_ino


def test_a_file_that_somebody_has_removed_is_written_again(tmp_path: Path) -> None:
    file = written(tmp_path)
    keeper = Keeper(tmp_path)
    keeper.load()
    file.unlink()
    keeper.learn()
    keeper.save()
    assert keeper.count == 6 and file.exists()


def test_a_lock_is_waited_for_at_the_end_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    keeper = Keeper(tmp_path)
    keeper.learn()
    with subprocess.Popen(["flock", str(tmp_path), "sh", "-c", "echo locked; read line"], stdin=-1, stdout=-1) as other:
        assert other.stdout is not None and other.stdin is not None
        other.stdout.readline()
        keeper.save()
        keeper.save()
        assert not caplog.records and not files(tmp_path)
        keeper.save()
        [record] = caplog.records
        assert "another process locks" in record.getMessage()
        last = threading.Thread(target=keeper.save, args=(True,))
        last.start()
        other.stdin.close()
        last.join()
    assert len(files(tmp_path)) == 1


def test_what_is_learned_while_it_is_written_is_written_next_time(tmp_path: Path) -> None:
    keeper = Keeper(tmp_path)
    done = threading.Event()

    def learn() -> None:
        number = 0
        while not done.is_set():
            keeper.learn(path=f"/{chr(97 + number % 26)}?value={number}")
            number += 1

    threads = [threading.Thread(target=learn) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(20):
            keeper.save()
            [file] = files(tmp_path)
            list(decode(file.read_bytes()).lines)
    finally:
        done.set()
        for thread in threads:
            thread.join()
    keeper.save()
    assert file.read_bytes() == encode(keeper.costs, keeper.routes)
    assert keeper.costs.cells == sum(route.cost.size() for _, _, route in keeper.routes.all())
