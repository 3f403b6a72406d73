"""``--check``: provokes each of its findings, except those about the database, in a real process."""

from __future__ import annotations

import json
import os
import platform
import re
import resource
import shutil
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support.commands import threadbridge_in
from tests.support.doctor_report import MYSQL, NO_DATABASE, SITE, Report, check, run_check
from tests.support.installation import installed
from tests.support.nginx_server import Nginx
from tests.support.processes import ROOT, free_port
from threadbridge.common.interpreter import describe, is_free_threaded

# A module in C that says nothing of the interpreter's lock.
UNDECLARED = """
#include <Python.h>
static PyModuleDef_Slot slots[] = {{0, NULL}};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "undeclared", NULL, 0, NULL, slots};
PyMODINIT_FUNC PyInit_undeclared(void) { return PyModuleDef_Init(&module); }
"""


def test_all_is_well(mariadb: dict[str, str]) -> None:
    report = check(mariadb, "--queue=7", "--frontends=3")
    assert report.bad == {}
    assert report.status == 0
    assert report.subjects == [*NO_DATABASE, "nginx", *MYSQL]
    assert report.settings["queue"] == {"value": "7", "origin": "command line"}
    assert f"Python {sys.version.split()[0]}, threadbridge " in report.message("versions")
    assert report.message("interpreter").startswith(describe())
    assert report.message("queues") == (
        "quick: 4 threads, up to 7 waiting requests; pool: 10 threads, up to 7 waiting requests; a request waits for "
        "30 s at most"
    )
    assert "MariaDB" in report.message("database")
    assert report.message("database").endswith(" answers; connected as myapplication@localhost")
    assert report.message("connections").startswith(
        "33 are needed (processes: 3, each with 10 in its pool and 1 for stopping queries); max_connections is 200"
    )
    assert "a test query was stopped, " in report.message("stopping queries")


def test_the_text_report_has_settings_then_findings_then_a_total(mariadb: dict[str, str], tmp_path: Path) -> None:
    ended = run_check(["run.py", f"--log_file_prefix={tmp_path}/no/a.log"], mariadb)
    assert (ended.returncode, ended.stderr) == (2, "")
    settings, findings, sum_ = ended.stdout.split("\n\n")
    assert settings.splitlines()[0].split() == ["pool", "PooledDB", "program"]
    lines = findings.splitlines()
    assert lines[0].startswith("ok       versions: Python ")
    [at] = [number for number, line in enumerate(lines) if line.startswith("error ")]
    assert lines[at].startswith(
        f"error    log directory: cannot create files in {tmp_path}/no, which is needed for new log files: "
    )
    assert lines[at + 1].startswith("         -> check that the path exists, ")
    assert sum_ == "1 error, 0 warnings\n"


def test_each_subject_is_explained() -> None:
    page = (ROOT / "docs" / "operating.md").read_text()
    explained = re.search(r"\| subject \|.*?\n\n", page, re.DOTALL)
    assert explained is not None
    rows = [row.split("|")[1].strip() for row in explained[0].strip().splitlines()[2:]]
    of_surroundings = {"nginx", "log directory", "log file", "socket directory", "other hosts", "memory", "processors"}
    subjects = {*NO_DATABASE, *MYSQL, *of_surroundings, "replica"} - {"versions"}
    assert sorted(", ".join(rows).split(", ")) == sorted(subjects)


# The process.


@pytest.mark.skipif(not is_free_threaded(), reason="this Python always has its lock")
@pytest.mark.parametrize("by", ["module", "variable"])
def test_free_threaded_python_whose_lock_is_on(mariadb: dict[str, str], tmp_path: Path, by: str) -> None:
    environment = {**mariadb, "PYTHON_GIL": "1"} if by == "variable" else mariadb
    if by == "module":
        # A module that declares nothing.
        (tmp_path / "undeclared.c").write_text(UNDECLARED)
        include, suffix = sysconfig.get_path("include"), sysconfig.get_config_var("EXT_SUFFIX")
        subprocess.run(
            ["cc", "-shared", "-fPIC", f"-I{include}", "undeclared.c", "-o", f"undeclared{suffix}"],
            cwd=tmp_path,
            check=True,
        )
    (tmp_path / "shop.py").write_text(f"{'import undeclared' if by == 'module' else ''}\n{SITE}")
    ended = run_check(["-W", "ignore", "-m", "threadbridge", "shop:app", "--threads=1"], environment, cwd=tmp_path)
    describe_with_lock = f"Python {platform.python_version()} free-threaded, but with its lock on"
    [at] = [number for number, line in enumerate(ended.stdout.splitlines()) if " interpreter: " in line]
    finding, advice = ended.stdout.splitlines()[at : at + 2]
    assert finding.startswith(f"warning  interpreter: {describe_with_lock}")
    if by == "module":
        assert finding.endswith(": undeclared does not declare that it can do without")
        assert "use a version of undeclared made for free-threaded Python" in advice
    else:
        assert finding.endswith(", because PYTHON_GIL or -X gil is 1")
    assert ended.returncode == 1


def test_bodies_that_no_client_could_upload(mariadb: dict[str, str]) -> None:
    report = check(mariadb, "--max_body_size=100M", "--spool_size=399M")
    assert (report.bad, report.status) == ({"uploads": "warning"}, 1)
    assert report.advice("uploads").startswith(f"set --spool_size to at least {400 * 1024**2}, or --max_body_size to")
    assert check(mariadb, "--max_body_size=100M", "--spool_size=400M").bad == {}


def test_other_hosts_cannot_be_reached(mariadb: dict[str, str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        up, down = f"http://127.0.0.1:{listener.getsockname()[1]}", f"http://127.0.0.1:{free_port()}"
        report = check(mariadb, f"--lane=reports:/reports/*:{up},{down}", f"--long_upstream={down}")
        assert report.bad == {"other hosts": "warning"}
        assert report.message("other hosts") == f"{down} cannot be reached: Connection refused"
        assert f"reports: up to 1000 requests on {up} and {down}" in report.message("queues")
        report = check(mariadb, f"--lane=reports:/reports/*:{up}")
        assert report.bad == {} and report.message("other hosts") == f"{up} can be reached"


def test_no_request_may_wait(mariadb: dict[str, str]) -> None:
    report = check(mariadb, "--queue=0")
    assert (report.bad, report.status) == ({"queues": "warning"}, 1)
    assert "no queue in lane quick, pool" in report.message("queues")


def test_waiting_may_take_the_whole_deadline(mariadb: dict[str, str]) -> None:
    report = check(mariadb, "--queue_timeout=20", "--deadline=20")
    assert report.bad == {"queues": "warning"}
    assert "may wait 20 s for a thread, but its deadline is after 20 s" in report.message("queues")
    assert check(mariadb, "--queue_timeout=19", "--deadline=20").bad == {}


@pytest.mark.parametrize(("limit", "level"), [(60, "error"), (500, "warning"), (1073, "warning"), (1074, "ok")])
def test_too_few_files_may_be_open(mariadb: dict[str, str], limit: int, level: str) -> None:
    # 14 threads, 10 connections, 50 of its own, and 2 times 500 waiting requests.
    report = check(mariadb, "--queue=500", limits=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit)))
    assert report.level("open files") == level
    assert f"the process may open {limit}" in report.message("open files")
    assert "1074" in (report.message if level == "ok" else report.advice)("open files")


def test_temporary_files_cannot_be_made(mariadb: dict[str, str]) -> None:
    report = check(mariadb, limits=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)))
    assert report.level("temporary files") == "error"
    assert "TMPDIR" in report.advice("temporary files")


def without_superpowers() -> Sequence[str]:
    """The command that runs as root, but subject to file permissions."""
    return ("setpriv", "--bounding-set=-dac_override,-dac_read_search") if os.geteuid() == 0 else ()


def test_log_directory_is_not_writable(mariadb: dict[str, str], tmp_path: Path) -> None:
    log = tmp_path / "logs" / "app.log"
    log.parent.mkdir()
    assert check(mariadb, f"--log_file_prefix={log}").bad == {}
    assert list(log.parent.iterdir()) == []
    log.parent.chmod(0o500)
    report = check(mariadb, f"--log_file_prefix={log}", before=without_superpowers())
    assert report.bad == {"log directory": "error"}
    assert "which is needed for new log files: Permission denied" in report.message("log directory")
    assert f"as user id {os.geteuid()}" in report.message("log directory")


def test_log_file_is_writable_but_cannot_be_rotated(mariadb: dict[str, str], tmp_path: Path) -> None:
    log = tmp_path / "logs" / "app.log"
    log.parent.mkdir()
    log.write_text("before\n")
    log.parent.chmod(0o500)
    report = check(mariadb, f"--log_file_prefix={log}", before=without_superpowers())
    assert report.bad == {"log directory": "warning"}
    assert "can be written now, but cannot be rotated" in report.message("log directory")
    assert log.read_text() == "before\n"


def test_log_file_belongs_to_another_user(mariadb: dict[str, str], tmp_path: Path) -> None:
    log = tmp_path / "app.log"
    log.write_text("before\n")
    log.chmod(0o400)
    report = check(mariadb, f"--log_file_prefix={log}", before=without_superpowers())
    assert report.bad == {"log file": "error"}
    assert "Permission denied" in report.message("log file")


def test_directory_of_the_unix_socket_is_not_a_directory(mariadb: dict[str, str], tmp_path: Path) -> None:
    assert check(mariadb, f"--unix_socket={tmp_path}/a.sock").bad == {}
    (tmp_path / "file").touch()
    for option in (f"--unix_socket={tmp_path}/file/a.sock", f"--bind=unix:{tmp_path}/file/a.sock"):
        report = check(mariadb, option)
        assert report.bad == {"socket directory": "error"}
        assert "Not a directory" in report.message("socket directory")


# nginx.


def check_without_pool(directory: Path, *arguments: str) -> Report:
    (directory / "site_app.py").write_text(SITE)
    command = ("site_app:app", "--threads=1", "--check", "--json", *arguments)
    return Report(threadbridge_in(directory, command, dict(os.environ)))


@pytest.mark.parametrize(
    ("configuration", "deadline", "message"),
    [
        ("proxy_read_timeout 100; location / { proxy_pass http://a; }", 99, ""),
        ("proxy_read_timeout 100; location / { proxy_pass http://a; }", 100, "gives up after 100 s (FILE:1)"),
        ("location / { proxy_pass http://a; }", 59, ""),
        ("location / { proxy_pass http://a; }", 60, "gives up after 60 s (nginx's default, at FILE:1)"),
        ("location / { proxy_pass http://a;\n proxy_read_timeout 2m; }", 100, ""),
        ("location / { proxy_pass http://a;\n proxy_read_timeout 1m30s; }", 100, "gives up after 90 s (FILE:2)"),
        ("proxy_read_timeout 1h;\nlocation / { proxy_read_timeout 500ms; proxy_pass http://a; }", 1, "0.5 s (FILE:2)"),
        ("proxy_read_timeout 1h;\nlocation /a { proxy_pass http://a; }\nlocation /b { proxy_pass http://b; }", 180, ""),
        (
            "proxy_read_timeout 1h;\nlocation /a { proxy_pass http://a; }\n"
            "location /b { proxy_pass http://b; location /b/c { proxy_read_timeout 1; } proxy_read_timeout 9; }",
            180,
            "gives up after 9 s (FILE:3)",
        ),
        (
            "# proxy_read_timeout 1h;\nlocation / { set $a '; } proxy_read_timeout 1h;'; proxy_pass http://a; }",
            99,
            "60 s",
        ),
        ('log_format a \'{\' $b "\\"}" x${c}y;\nlocation / { proxy_pass http://a; }', 60, "at FILE:2"),
        ("proxy_read_timeout 100;", 100, "FILE has no proxy_pass"),
        ("proxy_read_timeout soon; location / { proxy_pass http://a; }", 100, "FILE:1: 'soon' is not a length of time"),
        ("location / { proxy_pass http://a;", 100, "FILE: ends in the middle of a directive or of a block"),
        ("location / { } }", 100, "FILE:1: a '}' without a '{' before it"),
        ("include absent.conf;", 100, "absent.conf cannot be read: No such file or directory"),
        ("include FILE;", 100, "FILE:1 includes FILE, which includes this file"),
        ("include more/*.conf;", 100, "gives up after 7 s (DIRECTORY/more/b.conf:3)"),
    ],
)
def test_nginx_gives_up_first(tmp_path: Path, configuration: str, deadline: int, message: str) -> None:
    file = tmp_path / "site.conf"
    file.write_text(configuration.replace("FILE", str(file)))
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "a.conf").write_text("proxy_read_timeout 1h;")
    (tmp_path / "more" / "b.conf").write_text("location / {\nproxy_pass http://a;\nproxy_read_timeout 7; }")
    report = check_without_pool(tmp_path, f"--deadline={deadline}", "--queue_timeout=0.5", f"--nginx_config={file}")
    assert report.bad == ({"nginx": "warning"} if message else {})
    assert message.replace("FILE", str(file)).replace("DIRECTORY", str(tmp_path)) in report.message("nginx")


@pytest.mark.parametrize("name", ["myapplication.conf", "standalone.conf"])
def test_our_nginx_files_are_understood(mariadb: dict[str, str], tmp_path: Path, name: str) -> None:
    file = Nginx(name, tmp_path).configuration
    assert check(mariadb, f"--nginx_config={file}").bad == {}
    report = check(mariadb, f"--nginx_config={file}", "--deadline=200")
    assert f"gives up after 200 s ({tmp_path}/nginx/proxy.conf:" in report.message("nginx")


def test_there_is_no_pool(tmp_path: Path) -> None:
    report = check_without_pool(tmp_path)
    assert report.bad == {}
    assert report.subjects == NO_DATABASE
    assert "DBUtils" not in report.message("versions")


# start.sh.


def test_the_database_of_connections_in_no_pool_is_not_known(tmp_path: Path) -> None:
    report = check_without_pool(tmp_path, "--pool=MySQLdb")
    assert report.bad == {}
    message = "not checked: which server it is will be known when the application first connects"
    assert report.message("database") == message


def test_the_script_checks_what_it_starts(mariadb: dict[str, str]) -> None:
    with installed() as installation:
        assert installation.run("check", status=2) == ("start.sh: nothing is set up yet; run scripts/start.sh first\n")
        installation.env.update(mariadb)
        shutil.copytree(ROOT / "nginx", installation.directory / "nginx")
        # The script raises the limit of open files as far as it may.
        allowed, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (500, most))
        try:
            output = installation.run("check")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, most))
        assert f"the process may open {most}" in output
        assert "processes: 2, each with 10 in its pool" in output
        assert f"files can be created in {installation.directory}/logs" in output
        assert output.endswith("\n\n0 errors, 0 warnings\n")
        report = json.loads(installation.run("check", "--json"))
        assert report["settings"]["port"]["value"] == str(installation.ports[0])
        installation.env["MYSQL_UNIX_SOCKET"] = "/nowhere/mariadb.sock"
        assert "error    database: cannot connect: " in installation.run("check", status=2)
        (installation.directory / "var").rename(installation.directory / "var.away")
        (installation.directory / "var").touch()
        assert "cannot be written to" in installation.run("check", status=2)
        (installation.directory / "var").unlink()
        installation.run("check", "--xml", status=2)
