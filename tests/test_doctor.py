"""``--check``: each thing that it can find is brought about, on a real database, in a real process."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import MySQLdb
import pytest

from tests.databases import connect_settings, kill_server, line_to, start_server
from tests.installation import installed
from tests.nginx_server import Nginx
from tests.processes import MARIADB_SCRIPT, ROOT, private_mariadb

NO_DATABASE = ["versions", "queues", "open files", "temporary files"]
MYSQL = ["database", "connections", "idle connections", "stopping queries", "clock", "time zone"]
ADMINISTRATOR = {"user": "administrator", "password": "not a secret"}
LIMITED = {"MYSQL_USER": "limited", "MYSQL_PASSWORD_FILE": "", "MYSQL_PASSWORD": "limited-password"}

SITE = """
def app(environ, start_response):
    start_response("200 OK", [])
    return []
"""
# Pools that lead to a database in their own ways.
POOLS = (
    SITE
    + """
import itertools, os
import MySQLdb
from dbutils.pooled_db import PooledDB

with open(os.environ["MYSQL_PASSWORD_FILE"]) as file:
    settings = {
        "user": os.environ["MYSQL_USER"],
        "password": file.read(),
        "database": os.environ["MYSQL_DATABASE"],
        "unix_socket": os.environ["MYSQL_UNIX_SOCKET"],
    }
early = PooledDB(MySQLdb, maxconnections=2, init_command="SET timestamp = UNIX_TIMESTAMP() + 3600", **settings)
late = PooledDB(MySQLdb, maxconnections=2, init_command="SET timestamp = UNIX_TIMESTAMP() - 3600", **settings)
sqlite = PooledDB(__import__("sqlite3"), maxconnections=2, database=":memory:")
absent = PooledDB(__import__("sqlite3"), maxconnections=2, database="/nowhere/at-all")
unlimited = PooledDB(MySQLdb, **settings)

numbers = itertools.count()

def connect(**arguments):
    if next(numbers) % 2 and "OTHER_SERVER" in os.environ:
        name, password = os.environ["OTHER_SERVER"].split()
        with open(password) as file:
            arguments |= {"unix_socket": name, "password": file.read()}
    return MySQLdb.connect(**arguments)

balanced = PooledDB(connect, maxconnections=2, **settings)
"""
)


class Report:
    """What ``--check --json`` has said, and its exit status."""

    def __init__(self, ended: subprocess.CompletedProcess[str]) -> None:
        assert ended.stderr == ""
        report = json.loads(ended.stdout)
        self.status = ended.returncode
        assert report["status"] == self.status
        self.settings = report["settings"]
        self.subjects = [finding["subject"] for finding in report["findings"]]
        self._findings = {finding["subject"]: finding for finding in report["findings"]}
        assert self.status == max(["ok", "warning", "error"].index(self.level(subject)) for subject in self.subjects)
        for finding in report["findings"]:
            assert ("advice" in finding) == (finding["level"] != "ok"), finding

    def level(self, subject: str) -> str:
        level: str = self._findings[subject]["level"]
        return level

    def message(self, subject: str) -> str:
        message: str = self._findings[subject]["message"]
        return message

    def advice(self, subject: str) -> str:
        advice: str = self._findings[subject]["advice"]
        return advice

    @property
    def bad(self) -> dict[str, str]:
        return {subject: self.level(subject) for subject in self.subjects if self.level(subject) != "ok"}


def run_check(
    arguments: Sequence[str],
    env: dict[str, str],
    *,
    cwd: Path = ROOT,
    limits: Callable[[], None] | None = None,
    before: Sequence[str] = (),
) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MYSQL_")}
    env = {**kept, "PYTHONPATH": str(ROOT), **env}
    ended = subprocess.run(
        [*before, sys.executable, *arguments, "--check"],
        cwd=cwd,
        env=env,
        preexec_fn=limits or allow_many_files,
        capture_output=True,
        text=True,
        timeout=60,
    )
    for secret in (env.get("MYSQL_PASSWORD"), env.get("MYSQL_PASSWORD_FILE") and read(env["MYSQL_PASSWORD_FILE"])):
        assert not secret or secret not in ended.stdout + ended.stderr
    return ended


def read(path: str) -> str:
    return Path(path).read_text().strip()


def check(env: dict[str, str], *arguments: str, **options: Any) -> Report:
    """What the doctor says of run.py."""
    return Report(run_check(["run.py", "--json", *arguments], env, **options))


def check_pool(directory: Path, env: dict[str, str], name: str, *arguments: str) -> Report:
    """What the doctor says of one of the pools in `POOLS`."""
    (directory / "site_app.py").write_text(POOLS)
    command = ["-m", "threadbridge", "site_app:app", f"--pool=site_app:{name}", "--json", *arguments]
    return Report(run_check(command, env, cwd=directory))


def check_without_pool(directory: Path, *arguments: str) -> Report:
    (directory / "site_app.py").write_text(SITE)
    command = ["-m", "threadbridge", "site_app:app", "--threads=1", "--json", *arguments]
    return Report(run_check(command, {}, cwd=directory))


def allow_many_files() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


@pytest.fixture(scope="module")
def server() -> Iterator[dict[str, str]]:
    """A server with two more users: one that may do all, and one that may have one connection."""
    with private_mariadb() as made:
        directory = Path(made["MYSQL_UNIX_SOCKET"]).parent
        subprocess.run([MARIADB_SCRIPT, "stop", directory], check=True)
        mariadbd = shutil.which("mariadbd", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
        subprocess.run(
            [
                *(str(mariadbd), "--no-defaults", "--bootstrap", f"--datadir={directory}/data"),
                *(f"--tmpdir={directory}/tmp", *(["--user=root"] if os.geteuid() == 0 else [])),
            ],
            input=f"""
                FLUSH PRIVILEGES;
                CREATE USER administrator@localhost IDENTIFIED BY '{ADMINISTRATOR["password"]}';
                GRANT ALL ON *.* TO administrator@localhost;
                CREATE USER limited@localhost IDENTIFIED BY '{LIMITED["MYSQL_PASSWORD"]}' WITH MAX_USER_CONNECTIONS 1;
                GRANT SELECT ON myapplication.* TO limited@localhost;
            """,
            text=True,
            check=True,
            capture_output=True,
        )
        start_server(made)
        yield made


def administrator(server: dict[str, str]) -> Any:
    return MySQLdb.connect(unix_socket=server["MYSQL_UNIX_SOCKET"], **ADMINISTRATOR)


@contextmanager
def changed(server: dict[str, str], variable: str, value: int | str) -> Iterator[None]:
    """The server's variable has this value inside the block."""
    with closing(administrator(server)) as connection, closing(connection.cursor()) as cursor:
        cursor.execute(f"SELECT @@GLOBAL.{variable}")
        [before] = cursor.fetchone()
        cursor.execute(f"SET GLOBAL {variable} = %s", (value,))
    try:
        yield
    finally:
        with closing(administrator(server)) as connection, closing(connection.cursor()) as cursor:
            cursor.execute(f"SET GLOBAL {variable} = %s", (before,))


def test_all_is_well(mariadb: dict[str, str]) -> None:
    report = check(mariadb, "--queue=7", "--frontends=3")
    assert report.bad == {}
    assert report.status == 0
    assert report.subjects == [*NO_DATABASE, "nginx", *MYSQL]
    assert report.settings["queue"] == {"value": "7", "origin": "command line"}
    assert f"Python {sys.version.split()[0]}, threadbridge " in report.message("versions")
    assert report.message("queues") == "quick: 4 threads, 7 may wait; pool: 10 threads, 7 may wait; for 30 s at most"
    assert "MariaDB" in report.message("database")
    assert report.message("database").endswith(" answers, as myapplication@localhost")
    assert report.message("connections").startswith(
        "processes: 3, each with 10 in its pool and 1 to stop queries: 33; max_connections is 200"
    )
    assert "a query was stopped, " in report.message("stopping queries")


def test_people_read_settings_then_findings_then_a_sum(mariadb: dict[str, str], tmp_path: Path) -> None:
    ended = run_check(["run.py", f"--log_file_prefix={tmp_path}/no/a.log"], mariadb)
    assert (ended.returncode, ended.stderr) == (2, "")
    settings, findings, sum_ = ended.stdout.split("\n\n")
    assert settings.splitlines()[0].split() == ["pool", "PooledDB", "default"]
    lines = findings.splitlines()
    assert lines[0].startswith("ok       versions: Python ")
    [at] = [number for number, line in enumerate(lines) if line.startswith("error ")]
    assert lines[at].startswith(f"error    log directory: {tmp_path}/no is to hold new log files, but no file can ")
    assert lines[at + 1].startswith("         -> see that it exists, ")
    assert sum_ == "1 error, 0 warnings\n"


def test_each_subject_is_explained() -> None:
    page = (ROOT / "docs" / "operating.md").read_text()
    explained = re.search(r"\| subject \|.*?\n\n", page, re.DOTALL)
    assert explained is not None
    rows = [row.split("|")[1].strip() for row in explained[0].strip().splitlines()[2:]]
    subjects = {*NO_DATABASE, *MYSQL, "nginx", "log directory", "log file", "socket directory"} - {"versions"}
    assert sorted(", ".join(rows).split(", ")) == sorted(subjects)


# The process.


def test_nobody_may_wait(mariadb: dict[str, str]) -> None:
    report = check(mariadb, "--queue=0")
    assert (report.bad, report.status) == ({"queues": "warning"}, 1)
    assert "in the lane quick, pool nobody may wait" in report.message("queues")


def test_waiting_may_take_all_the_time_there_is(mariadb: dict[str, str]) -> None:
    report = check(mariadb, "--queue_timeout=20", "--deadline=20")
    assert report.bad == {"queues": "warning"}
    assert "wait for a thread for 20 s, and has 20 s until its deadline" in report.message("queues")
    assert check(mariadb, "--queue_timeout=19", "--deadline=20").bad == {}


@pytest.mark.parametrize(("limit", "level"), [(60, "error"), (500, "warning"), (1073, "warning"), (1074, "ok")])
def test_too_few_files_may_be_open(mariadb: dict[str, str], limit: int, level: str) -> None:
    # 14 threads, 10 connections, 50 of its own, and 2 times 500 that wait.
    report = check(mariadb, "--queue=500", limits=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit)))
    assert report.level("open files") == level
    assert f"the process may open {limit}" in report.message("open files")
    assert "1074" in (report.message if level == "ok" else report.advice)("open files")


def test_temporary_files_cannot_be_made(mariadb: dict[str, str]) -> None:
    report = check(mariadb, limits=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)))
    assert report.level("temporary files") == "error"
    assert "TMPDIR" in report.advice("temporary files")


def without_superpowers() -> Sequence[str]:
    """What makes of root somebody for whom permissions count."""
    return ("setpriv", "--bounding-set=-dac_override,-dac_read_search") if os.geteuid() == 0 else ()


def test_log_directory_may_not_be_written(mariadb: dict[str, str], tmp_path: Path) -> None:
    log = tmp_path / "logs" / "app.log"
    log.parent.mkdir()
    assert check(mariadb, f"--log_file_prefix={log}").bad == {}
    assert list(log.parent.iterdir()) == []
    log.parent.chmod(0o500)
    report = check(mariadb, f"--log_file_prefix={log}", before=without_superpowers())
    assert report.bad == {"log directory": "error"}
    assert "no file can be made in it: Permission denied" in report.message("log directory")
    assert f"as user id {os.geteuid()}" in report.message("log directory")


def test_log_file_may_be_written_but_not_rotated(mariadb: dict[str, str], tmp_path: Path) -> None:
    log = tmp_path / "logs" / "app.log"
    log.parent.mkdir()
    log.write_text("before\n")
    log.parent.chmod(0o500)
    report = check(mariadb, f"--log_file_prefix={log}", before=without_superpowers())
    assert report.bad == {"log directory": "warning"}
    assert "can be written now, but cannot be rotated" in report.message("log directory")
    assert log.read_text() == "before\n"


def test_log_file_belongs_to_somebody_else(mariadb: dict[str, str], tmp_path: Path) -> None:
    log = tmp_path / "app.log"
    log.write_text("before\n")
    log.chmod(0o400)
    report = check(mariadb, f"--log_file_prefix={log}", before=without_superpowers())
    assert report.bad == {"log file": "error"}
    assert "Permission denied" in report.message("log file")


def test_directory_of_the_unix_socket_is_no_directory(mariadb: dict[str, str], tmp_path: Path) -> None:
    assert check(mariadb, f"--unix_socket={tmp_path}/a.sock").bad == {}
    (tmp_path / "file").touch()
    report = check(mariadb, f"--unix_socket={tmp_path}/file/a.sock")
    assert report.bad == {"socket directory": "error"}
    assert "Not a directory" in report.message("socket directory")


# nginx.


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
        ("proxy_read_timeout 100;", 100, "FILE has no proxy_pass"),
        ("proxy_read_timeout soon; location / { proxy_pass http://a; }", 100, "FILE:1: 'soon' is not a time"),
        ("location / { proxy_pass http://a;", 100, "FILE: ends in the middle of a directive or of a block"),
        ("location / { } }", 100, "FILE:1: a '}' that ends no block"),
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


# The database.


def test_database_allows_too_few_connections(server: dict[str, str]) -> None:
    with changed(server, "max_connections", 25), closing(administrator(server)), closing(administrator(server)):
        report = check(server, "--frontends=2")
        assert report.bad == {}
        assert report.message("connections").endswith("max_connections is 25, of which others have 2 now")
        with closing(administrator(server)), closing(administrator(server)):
            report = check(server, "--frontends=2")
    assert (report.bad, report.status) == ({"connections": "error"}, 2)
    assert report.message("connections") == (
        "processes: 2, each with 10 in its pool and 1 to stop queries: 22; but max_connections is 25, of which others "
        "have 4 now"
    )
    assert "raise max_connections on the server by 1 or more" in report.advice("connections")


def test_connections_of_the_frontends_themselves_are_counted_once(server: dict[str, str]) -> None:
    with (
        changed(server, "max_connections", 24),
        closing(MySQLdb.connect(**connect_settings(server))),
        closing(MySQLdb.connect(**connect_settings(server))),
        closing(MySQLdb.connect(**connect_settings(server))),
    ):
        assert check(server, "--frontends=2").bad == {}


def test_pool_without_a_limit_has_a_connection_for_each_thread(server: dict[str, str], tmp_path: Path) -> None:
    report = check_pool(tmp_path, server, "unlimited", "--threads=100")
    assert "each with 104 in its pool" in report.message("connections")


def test_user_may_have_one_connection(server: dict[str, str]) -> None:
    report = check({**server, **LIMITED})
    assert report.bad == {"connections": "error", "stopping queries": "error"}
    assert report.message("connections").endswith(": 11; but max_user_connections is 1")
    assert "raise max_user_connections on the server by 10 or more" in report.advice("connections")
    assert "max_user_connections" in report.message("stopping queries")


def test_database_closes_idle_connections_early(server: dict[str, str]) -> None:
    with changed(server, "wait_timeout", 60):
        report = check(server)
        assert (report.bad, report.status) == ({"idle connections": "warning"}, 1)
        assert report.message("idle connections").startswith("wait_timeout is 60 s")
        assert check(server, "--deadline=60").bad == {}


def test_connections_are_spread_over_two_servers(
    server: dict[str, str], mariadb: dict[str, str], tmp_path: Path
) -> None:
    assert check_pool(tmp_path, mariadb, "balanced").bad == {}
    other = " ".join((server["MYSQL_UNIX_SOCKET"], server["MYSQL_PASSWORD_FILE"]))
    report = check_pool(tmp_path, {**mariadb, "OTHER_SERVER": other}, "balanced")
    assert report.bad == {"stopping queries": "error"}
    assert "could not be stopped: the control connection came to " in report.message("stopping queries")
    assert "spreads connections over several servers" in report.advice("stopping queries")


@pytest.mark.parametrize(("pool", "how"), [("early", "ahead of"), ("late", "behind")])
def test_clocks_differ(mariadb: dict[str, str], tmp_path: Path, pool: str, how: str) -> None:
    report = check_pool(tmp_path, mariadb, pool)
    assert report.bad == {"clock": "warning"}
    message = re.fullmatch(r"the database's clock is (\d+) s (.+) this machine's", report.message("clock"))
    assert message is not None
    # The pool's clock stands still while it is looked at.
    assert 3580 < int(message[1]) < 3620
    assert message[2] == how


def test_time_zones_differ(server: dict[str, str]) -> None:
    with changed(server, "time_zone", "-03:30"):
        assert check({**server, "TZ": "HERE3:30"}).bad == {}
        report = check({**server, "TZ": "HERE-1"})
    assert report.bad == {"time zone": "warning"}
    assert "(-03:30) is -03:30 from UTC, this machine's is +01:00" in report.message("time zone")


def test_database_is_down(server: dict[str, str]) -> None:
    kill_server(server)
    try:
        report = check(server)
    finally:
        start_server(server)
    assert (report.bad, report.status) == ({"database": "error"}, 2)
    assert report.subjects == [*NO_DATABASE, "nginx", "database"]
    assert report.message("database").startswith("no connection: Can't connect to local server through socket")
    assert "whether the server runs" in report.advice("database")


def test_database_says_nothing(mariadb: dict[str, str]) -> None:
    with line_to(mariadb["MYSQL_UNIX_SOCKET"]) as line:
        line.swallow()
        begun = time.monotonic()
        report = check({**mariadb, "MYSQL_UNIX_SOCKET": line.path})
        took = time.monotonic() - begun
    assert report.bad == {"database": "error"}
    assert report.message("database") == "the database has not answered within 5 s"
    assert took < 20


def test_password_is_wrong(mariadb: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "password").write_text("this is not it")
    report = check({**mariadb, "MYSQL_PASSWORD_FILE": str(tmp_path / "password")})
    assert report.bad == {"database": "error"}
    assert "Access denied for user 'myapplication'@'localhost' (using password: YES)" in report.message("database")
    assert "the user and the password" in report.advice("database")


def test_there_is_no_such_database(mariadb: dict[str, str]) -> None:
    report = check({**mariadb, "MYSQL_DATABASE": "yourapplication"})
    assert report.bad == {"database": "error"}
    assert "to database 'yourapplication' (error 1044)" in report.message("database")
    assert "the name of the database" in report.advice("database")


def test_another_kind_of_database(mariadb: dict[str, str], tmp_path: Path) -> None:
    report = check_pool(tmp_path, mariadb, "sqlite")
    assert report.bad == {}
    assert report.message("database") == "answers; nothing more is checked with the driver sqlite3"
    report = check_pool(tmp_path, mariadb, "absent")
    assert report.bad == {"database": "error"}
    assert report.message("database") == "no connection: OperationalError: unable to open database file"


def test_there_is_no_pool(tmp_path: Path) -> None:
    report = check_without_pool(tmp_path)
    assert report.bad == {}
    assert report.subjects == NO_DATABASE
    assert "DBUtils" not in report.message("versions")


# start.sh.


def test_the_script_checks_what_it_starts(mariadb: dict[str, str]) -> None:
    with installed() as installation:
        assert installation.run("check", status=2) == (
            "start.sh: nothing is set up yet; do that with: scripts/start.sh\n"
        )
        installation.env.update(mariadb)
        shutil.copytree(ROOT / "nginx", installation.directory / "nginx")
        # Of the files that may be open the script takes all there are.
        allowed, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (500, most))
        try:
            output = installation.run("check")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, most))
        assert f"the process may open {most}" in output
        assert "processes: 2, each with 10 in its pool" in output
        assert f"files can be made in {installation.directory}/logs" in output
        assert output.endswith("\n\n0 errors, 0 warnings\n")
        report = json.loads(installation.run("check", "--json"))
        assert report["settings"]["port"]["value"] == str(installation.ports[0])
        installation.env["MYSQL_UNIX_SOCKET"] = "/nowhere/mariadb.sock"
        assert "error    database: no connection: " in installation.run("check", status=2)
        (installation.directory / "var").rename(installation.directory / "var.away")
        (installation.directory / "var").touch()
        assert "cannot be written to" in installation.run("check", status=2)
        (installation.directory / "var").unlink()
        installation.run("check", "--xml", status=2)
