"""The pid file, the titles of processes, and the user whom they become."""

from __future__ import annotations

import os
import pwd
import signal
import socket
import stat
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from tests.sockets.test_listeners import ask_unix
from tests.support.inprocess import wait_until
from tests.support.processes import ROOT
from tests.support.site_process import Process
from tests.support.supervised import Supervised, finish, said
from threadbridge.process.identity import pid_files, remove_pid_file, write_pid_file
from threadbridge.settings.values import SettingError

# Those that take long run on demand.
on_demand = pytest.mark.skipif("RENEWING" not in os.environ, reason="takes long: set RENEWING=1")

# The pid file.


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "server.pid"
    remove_pid_file()


def test_the_pid_file_names_the_supervisor_and_keeps_a_second_server_away(tmp_path: Path, file: Path) -> None:
    with Supervised(tmp_path, f"--pid_file={file}") as server:
        assert file.read_text() == f"{server.process.pid}\n"
        assert stat.S_IMODE(file.stat().st_mode) == 0o644
        (tmp_path / "second").mkdir()
        second = Process(tmp_path / "second", "--port={port}", f"--pid_file={file}").run_to_its_end()
        assert second.returncode == 1
        assert f"process {server.process.pid} is running; stop it, or give another file" in second.stderr
        assert server.stop() == 0
        assert not file.exists()


@on_demand
def test_the_pid_file_is_removed_when_requests_are_cut(tmp_path: Path, file: Path) -> None:
    with Process(tmp_path, "--port={port}", f"--pid_file={file}", "--grace=0") as server:
        assert file.read_text() == f"{server.process.pid}\n"
        with server.begin(f"/slow?{tmp_path / 'flag'}"):
            wait_until((tmp_path / "flag.entered").exists, "a thread at work")
            assert server.stop() == 1
        assert not file.exists()


def test_a_pid_file_of_a_process_that_has_ended_is_replaced(file: Path) -> None:
    with subprocess.Popen(["true"]) as ended:
        pass
    for text in (f"{ended.pid}\n", "", "nonsense", f"{os.getpid()}\n"):
        file.write_text(text)
        write_pid_file(str(file))
        assert file.read_text() == f"{os.getpid()}\n"
    assert pid_files() == [file]
    remove_pid_file()
    assert os.listdir(file.parent) == []


def test_a_pid_that_another_process_has_now_does_not_count(file: Path) -> None:
    file.write_text("1\n")
    with pytest.raises(SettingError, match="process 1 is running"):
        write_pid_file(str(file))
    # Written before process 1 was started, with the machine.
    os.utime(file, (1, 1))
    write_pid_file(str(file))
    assert file.read_text() == f"{os.getpid()}\n"


def test_another_servers_pid_file_is_left_alone(file: Path) -> None:
    write_pid_file(str(file))
    file.write_text("1\n")
    remove_pid_file()
    assert file.read_text() == "1\n"


def test_a_pid_file_that_cannot_be_written_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="No such file or directory"):
        write_pid_file(str(tmp_path / "missing" / "pid"))


# The user.


def ids(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


def as_anybody(server: Process) -> Process:
    """The same server with a Python that every user can run."""
    for python in (sys.executable, "/usr/bin/python3", "/usr/local/bin/python3"):
        # A virtual environment of a Python below /root can only be used by root.
        packages = os.pathsep.join((str(ROOT), sysconfig.get_path("purelib")))
        command = [python, "-c", "import sys, threadbridge; print(sys.version_info[:2])"]
        try:
            printed = subprocess.check_output(
                command, env={"PYTHONPATH": packages}, user="nobody", group="nogroup", extra_groups=(), text=True
            )
        except (OSError, subprocess.CalledProcessError):
            continue
        if printed == f"{sys.version_info[:2]}\n":
            server.command[0] = python
            server.env |= {"PYTHONPATH": packages, "PYTHONDONTWRITEBYTECODE": "1"}
            return server
    pytest.skip("no other user can run this version of Python with these packages")


def free_port_of_root() -> int:
    for port in range(700, 1000):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("no port below 1000 is free")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_root_binds_a_low_port_and_becomes_another_user_for_good() -> None:
    nobody = pwd.getpwnam("nobody")
    port = free_port_of_root()
    # pytest's own directories are closed to other users.
    with tempfile.TemporaryDirectory(prefix="t-") as directory:
        place = Path(directory)
        place.chmod(0o755)
        (place / "logs").mkdir()
        os.chown(place / "logs", nobody.pw_uid, nobody.pw_gid)
        paths = [place / "server.pid", place / "logs" / "socket", place / "run", place / "logs" / "app.log"]
        arguments = ["--user=nobody", f"--bind=127.0.0.1:{port}", f"--bind=unix:{paths[1]}", f"--pid_file={paths[0]}"]
        arguments += [f"--run_directory={paths[2]}", f"--log_file_prefix={paths[3]}", "--processes=2"]
        arguments.append("--on_starting=hooks:begin")
        server = as_anybody(Process(place, *arguments, port=port))
        with (place / "site_app.py").open("a") as file:
            file.write('open("logs/home", "a").write(os.environ["HOME"] + "\\n")\n')
        # The module may be the user's, so root does not import it.
        (place / "hooks.py").write_text('import os\nopen("logs/hooks", "w").write(str(os.getuid()))\n\nbegin = list\n')
        with server:
            pids = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
            assert len(pids) == 2
            for pid in (server.process.pid, *map(int, pids)):
                status = ids(pid)
                assert set(status["Uid"].split()) == {str(nobody.pw_uid)}
                assert set(status["Gid"].split()) == {str(nobody.pw_gid)}
                assert set(status["Groups"].split()) <= {str(nobody.pw_gid)}
                assert int(status["CapPrm"], 16) == int(status["CapEff"], 16) == 0
            assert {path.stat().st_uid for path in paths} == {nobody.pw_uid}
            assert (place / "logs" / "home").read_text() == 2 * f"{nobody.pw_dir}\n"
            assert (place / "logs" / "hooks").read_text() == str(nobody.pw_uid)
            assert finish(server.begin("/")) and ask_unix(paths[1])
            # It can renew them, but not listen on the low port once more.
            server.process.send_signal(signal.SIGUSR2)
            log = paths[3]
            wait_until(lambda: "all processes are replaced" in log.read_text(), "the reload", 30)
            server.process.send_signal(signal.SIGTTIN)
            wait_until(lambda: "restart with a higher number of processes" in log.read_text(), "it says so")
            assert server.stop() == 0
            assert not paths[1].exists()
            # Its directory is root's, so it stays, and names no process.
            assert paths[0].read_text() == ""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@on_demand
def test_another_user_can_add_and_remove_processes_on_a_high_port() -> None:
    with tempfile.TemporaryDirectory(prefix="t-") as directory:
        Path(directory).chmod(0o755)
        server = Supervised(Path(directory), "--user=nobody")
        as_anybody(server)
        with server:
            first = server.wait_for_both()
            server.process.send_signal(signal.SIGTTIN)
            wait_until(lambda: server.ask() not in first, "the third answers", 30)
            assert said(server, "running as user 65534, group 65534")()
            server.process.send_signal(signal.SIGTTOU)
            wait_until(lambda: server.pids() == first, "the third ends", 30)
            assert server.stop() == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_root_does_not_write_where_links_of_the_user_lead() -> None:
    nobody = pwd.getpwnam("nobody")
    with tempfile.TemporaryDirectory(prefix="t-") as directory:
        place = Path(directory)
        place.chmod(0o755)
        (place / "logs").mkdir()
        os.chown(place / "logs", nobody.pw_uid, nobody.pw_gid)
        secret, link = place / "secret", place / "logs" / "app.log"
        secret.write_text("root's")
        secret.chmod(0o600)
        link.symlink_to(secret)
        server = as_anybody(Process(place, "--user=nobody", f"--log_file_prefix={link}", "--port={port}"))
        ended = server.run_to_its_end()
        assert ended.returncode == 2
        assert ended.stderr.endswith(f"--log_file_prefix={link}: Permission denied; see --help\n")
        # A link that takes the place of a socket's file when it has been bound.
        become(["--user=nobody"], [link], server.env)
        assert (secret.stat().st_uid, secret.read_text()) == (0, "root's")
        assert link.lstat().st_uid == nobody.pw_uid


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_group_stands_in_place_of_all_of_the_users(tmp_path: Path) -> None:
    """With a table of groups of its own, in which the user has another one."""
    table = tmp_path / "group"
    table.write_text("nogroup:x:65534:\nothers:x:70001:nobody\nshop:x:70002:\n")
    assert become(["--user=nobody"], groups=table) == [65534, 70001]
    assert become(["--user=nobody", "--group=shop"], groups=table) == [70002]


def become(
    arguments: list[str], paths: Sequence[Path] = (), env: Mapping[str, str] | None = None, groups: Path | None = None
) -> list[int]:
    """Become another user in a process of its own, which has the groups returned here."""
    program = f"""
import os
from threadbridge.process.privileges import Identity
from threadbridge.settings.table import from_keywords
settings = dict(argument[2:].split("=") for argument in {arguments})
Identity(from_keywords(settings)).become((), {[*map(str, paths)]}, None)
print(*os.getgroups())
"""
    command = [sys.executable, "-c", program]
    if groups is not None:
        mounting = f'mount --bind {groups} /etc/group && exec "$@"'
        command = ["unshare", "--mount", "sh", "-c", mounting, "sh", *command]
    return sorted(map(int, subprocess.check_output(command, env=env, cwd=ROOT, text=True).split()))
