"""The command line: where settings come from, its help, and what it says about mistakes."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.support.commands import threadbridge_in
from tests.support.processes import ROOT
from threadbridge.settings.table import (
    ALL,
    option_name,
)

APPLICATION = """
from dbutils.pooled_db import PooledDB

class Namespace:
    def app(self, environ, start_response):
        start_response("200 OK", [])
        return []

namespace = Namespace()
app = namespace.app
number = 5
pool = PooledDB(__import__("sqlite3"), maxconnections=3, database=":memory:")
unlimited = PooledDB(__import__("sqlite3"), database=":memory:")
"""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Where a module ``site_app`` is that can be served."""
    (tmp_path / "site_app.py").write_text(APPLICATION)
    return tmp_path


def threadbridge(directory: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return threadbridge_in(directory, arguments, {**os.environ, **environment})


def checked(ended: subprocess.CompletedProcess[str]) -> dict[str, tuple[str, str]]:
    """What ``--check`` has printed first: for each setting its value and its origin."""
    assert ended.stderr == ""
    settings, _, _ = ended.stdout.partition("\n\n")
    rows = [line.split(maxsplit=2) for line in settings.splitlines()]
    return {name: (value, origin) for name, value, origin in rows}


def test_the_stronger_source_counts(directory: Path) -> None:
    config = directory / "site.toml"
    config.write_text(
        'queue = 1\ngrace = 1.5\nthreads = 2\nmax_body_size = "5M"\nxheaders = true\n'
        'trusted_proxies = ["10.0.0.1", "10.0.0.2"]\nlanes = ["static:/static/*:1"]\nunix_socket_mode = "660"\n'
    )
    settings = checked(
        threadbridge(
            directory,
            "site_app:app",
            "--check",
            "--config=site.toml",
            "--queue=3",
            "--max-header-size=128k",
            THREADBRIDGE_QUEUE="2",
            THREADBRIDGE_GRACE="7",
            THREADBRIDGE_LOGGING="WARNING",
        )
    )
    assert settings["queue"] == ("3", "command line")
    assert settings["max_header_size"] == ("128k", "command line")
    assert settings["grace"] == ("7", "environment")
    assert settings["logging"] == ("warning", "environment")
    assert settings["threads"] == ("2", "site.toml")
    assert settings["max_body_size"] == ("5M", "site.toml")
    assert settings["xheaders"] == ("true", "site.toml")
    assert settings["trusted_proxies"] == ("10.0.0.1,10.0.0.2", "site.toml")
    assert settings["lanes"] == ("static:/static/*:1", "site.toml")
    assert settings["unix_socket_mode"] == ("660", "site.toml")
    assert settings["port"] == ("8000", "default")
    assert list(settings) == list(ALL)


def test_the_environment_can_name_the_config_file(directory: Path) -> None:
    (directory / "site.toml").write_text("threads = 4\n")
    settings = checked(threadbridge(directory, "site_app:app", "--check", THREADBRIDGE_CONFIG="site.toml"))
    assert settings["threads"] == ("4", "site.toml")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--log-file-prefix=a.log", "--xheaders", "--lane=a:/a:1", "--lane=b:/b:2", "site_app:app"],
        ["site_app:app", "--log_file_prefix", "a.log", "--xheaders=yes", "--lane=a:/a:1,b:/b:2"],
        ["-log_file_prefix=a.log", "-xheaders=t", "site_app:app", "--lane", "a:/a:1", "--lanes=b:/b:2"],
    ],
)
def test_options_in_every_spelling(directory: Path, arguments: list[str]) -> None:
    settings = checked(threadbridge(directory, *arguments, "--threads=1", "--check"))
    assert settings["log_file_prefix"] == ("a.log", "command line")
    assert settings["xheaders"] == ("true", "command line")
    assert settings["lanes"] == ("a:/a:1,b:/b:2", "command line")
    assert not (directory / "a.log").exists(), "--check leaves nothing behind"


def test_an_application_and_a_pool_inside_other_objects(directory: Path) -> None:
    options = ("--pool=site_app:pool", "--client-key=site_app:namespace.app")
    settings = checked(threadbridge(directory, "site_app:namespace.app", *options, "--check"))
    assert settings["pool"] == ("site_app:pool", "command line")
    assert settings["client_key"] == ("site_app:namespace.app", "command line")


def test_what_the_program_says_can_be_overridden() -> None:
    ended = subprocess.run(
        [sys.executable, "run.py", "--check", "--xheaders=false"], cwd=ROOT, capture_output=True, text=True, timeout=30
    )
    settings = checked(ended)
    assert settings["port"] == ("8888", "program")
    assert settings["pool"] == ("PooledDB", "program")
    assert settings["xheaders"] == ("false", "command line")


def test_help_tells_each_option_with_its_default(directory: Path) -> None:
    ended = threadbridge(directory, "--help")
    assert ended.returncode == 0
    # Long words are cut at hyphens.
    text = ended.stdout.translate({ord(each): None for each in " \n"})
    for name, setting in ALL.items():
        entry = f"--{option_name(name)}{setting.kind.metavar}{setting.meaning}"
        assert entry.replace(" ", "") in text
    assert "[default:127.0.0.1]" in text


def test_shells_can_complete_options_and_their_words(directory: Path) -> None:
    def complete(*words: str) -> list[str]:
        program = "import sys; from threadbridge.cli.main import main; sys.argv[0] = 'threadbridge'; sys.exit(main())"
        ended = subprocess.run(
            [sys.executable, "-c", program],
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "_THREADBRIDGE_COMPLETE": "bash_complete",
                "COMP_WORDS": " ".join(("threadbridge", *words)),
                "COMP_CWORD": str(len(words)),
            },
            cwd=directory,
            capture_output=True,
            text=True,
            timeout=30,
        )
        return ended.stdout.split()

    assert complete("--log_rot") == [
        "plain,--log_rotate_mode",
        "plain,--log_rotate_when",
        "plain,--log_rotate_interval",
    ]
    assert complete("--rerun", "") == ["plain,safe", "plain,never"]
    assert complete("--config", "") == ["file,"]


def test_the_version_is_that_of_the_package(directory: Path) -> None:
    program = [sys.executable, "-m", "threadbridge", "--version"]
    said = subprocess.check_output(program, cwd=directory, env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True)
    assert said == f"threadbridge {version('threadbridge')}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "MODULE:APP is missing: name the WSGI application"),
        (["site_app:app", "surplus"], "Got unexpected extra argument (surplus)"),
        (["site_app:app", "--nonsense=1"], "No such option '--nonsense'"),
        (["site_app:app", "--port"], "Option '--port' requires an argument"),
        (["site_app:app", "--client-key", "--port=1"], "--client_key=--port=1: expected MODULE:ATTRIBUTE"),
        (["site_app:app", "-"], "Got unexpected extra argument (-)"),
        (
            ["site_app:app", "--prot=1"],
            "No such option '--prot'. (Did you mean one of: '--pool', '--port', '--preload'?)",
        ),
        (["site_app:app", "--port=abc"], "--port=abc: expected a number from 0 to 65535"),
        (["site_app:app", "--port=65536"], "--port=65536: expected a number from 0 to 65535"),
        (["site_app:app", "--threads=0"], "--threads=0: expected a number of at least 1"),
        (["site_app:app", "--grace=soon"], "--grace=soon: expected a number of seconds, 0 or more"),
        (["site_app:app", "--grace=nan"], "--grace=nan: expected a number of seconds, 0 or more"),
        (["site_app:app", "--idle-timeout=0"], "--idle_timeout=0: expected a number of seconds greater than 0"),
        (["site_app:app", "--max_body_size=5T"], "--max_body_size=5T: expected a number of bytes, 1 or more, such as"),
        (["site_app:app", "--xheaders=perhaps"], "--xheaders=perhaps: expected true or false"),
        (["site_app:app", "--logging=loud"], "--logging=loud: expected one of debug, info, warning, error, none"),
        (["site_app:app", "--log_rotate_mode=x"], "--log_rotate_mode=x: expected one of size, time"),
        (["site_app:app", "--unix_socket_mode=888"], "--unix_socket_mode=888: expected octal permissions such as 660"),
        (["site_app:app", "--unix-socket="], "--unix_socket=: expected a path"),
        (["site_app:app", "--lane=static"], "--lane=static: expected NAME:PATTERN:THREADS, such as static:/static/*:2"),
        (["site_app:app", "--threads=1", "--lane=a:/a:0"], "--lane=a:/a:0: lane a: threads=0"),
        (["site_app:app", "--threads=1", "--lane=a:b:1"], "--lane=a:b:1: lane a: the pattern 'b' matches no path"),
        (["site_app:app", "--threads=1", "--xheaders", "--trusted_proxies=proxy"], "trusted proxy 'proxy': expected"),
        (["site_app:app", "--keyfile=key.pem"], "keyfile without certfile"),
        (
            ["site_app:app", "--log_json", "--access_log_format=%(h)s"],
            "log_json and access_log_format: give one of them",
        ),
        (
            ["site_app:app", "--threads=1", "--access_log_format=%(z)s"],
            "access_log_format: there is no %(z)s; there are h, ",
        ),
        (["site_app:app", "--threads=1", "--certfile=no.pem"], "certfile no.pem: No such file or directory"),
        (["site_app:app", "--unix_socket=s", "--port=1"], "unix_socket and port: give one of them"),
        (["site_app:app", "--config=no.toml"], "cannot read the config file no.toml: No such file or directory"),
        (["site_app:app", "--threads=1", "--log_file_prefix=no/a.log"], "--log_file_prefix=no/a.log: No such file"),
        (
            ["site_app:app", "--pool=site_app:number"],
            "pool=5 is not a pool that can be guarded (there is support for",
        ),
        (["site_app:app", "--pool=site_app"], "--pool=site_app: expected MODULE:ATTRIBUTE"),
        (
            ["site_app:app", "--pool=site_app:pool", "--pool=site_app:absent"],
            "--pool=site_app:absent: module 'site_app' has no attribute 'absent'",
        ),
        (["site_app:app", "--pool=site_app:pool,none"], "--pool=site_app:pool,none: expected MODULE:ATTRIBUTE of a"),
        (["site_app:app", "--pool="], "--pool=: expected MODULE:ATTRIBUTE of a pool, such as shop:db.pool; or django"),
        (["site_app:app", "--pool=django"], "pool=django: the application has not imported django.db"),
        (
            ["site_app:app", "--threads=1", "--client_key=site_app:number"],
            "--client_key=site_app:number: expected a",
        ),
        (["site_app"], "site_app: expected MODULE:ATTRIBUTE, such as myapplication:app"),
        (["site_app:nothing"], "site_app:nothing: module 'site_app' has no attribute 'nothing'"),
        (["site_app:app.x.y"], "site_app:app.x.y: 'function' object has no attribute 'x'"),
        (["site_app:number", "--threads=1"], "5 cannot be called; expected a WSGI application"),
        (["absent:app"], "absent:app: cannot import absent: ModuleNotFoundError: No module named 'absent'"),
        (["site_app.sub:app"], "site_app.sub:app: cannot import site_app.sub: ModuleNotFoundError: No module named"),
    ],
)
def test_what_cannot_be_used_is_one_clear_line(directory: Path, arguments: list[str], message: str) -> None:
    ended = threadbridge(directory, *arguments)
    assert ended.returncode == 2
    assert ended.stdout == ""
    [line] = ended.stderr.splitlines()
    assert line.startswith(f"python -m threadbridge: {message}")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("nonsense = 1", "site.toml: nonsense: there is no setting of this name; see --help"),
        ("treads = 1", "site.toml: treads: there is no setting of this name; did you mean threads?"),
        ('config = "other.toml"', "site.toml: config: this setting cannot be given in a config file"),
        ("port = true", "site.toml: port = True: expected a number from 0 to 65535"),
        ('port = "8000"', "site.toml: port = '8000': expected a number from 0 to 65535"),
        ("port = 70000", "site.toml: port = 70000: expected a number from 0 to 65535"),
        ("address = 5", "site.toml: address = 5: expected a text"),
        ('address = ["127.0.0.1"]', "site.toml: address = ['127.0.0.1']: expected a text"),
        ('xheaders = "yes"', "site.toml: xheaders = 'yes': expected true or false"),
        ("trusted_proxies = [5]", "site.toml: trusted_proxies = [5]: expected a list of texts"),
        ("[server]\nport = 8000", "site.toml: server: there is no setting of this name"),
        ("port 8000", "the config file site.toml is not TOML: Expected '='"),
    ],
)
def test_a_mistake_in_the_config_file_is_one_clear_line(directory: Path, line: str, message: str) -> None:
    (directory / "site.toml").write_text(line + "\n")
    ended = threadbridge(directory, "site_app:app", "--config=site.toml")
    assert ended.returncode == 2
    [said] = ended.stderr.splitlines()
    assert said.startswith(f"python -m threadbridge: {message}")


def test_a_variable_that_is_no_setting_names_the_nearest(directory: Path) -> None:
    ended = threadbridge(directory, "site_app:app", THREADBRIDGE_TREADS="2")
    assert ended.returncode == 2
    message = "THREADBRIDGE_TREADS: there is no setting of this name; did you mean THREADBRIDGE_THREADS?; see --help"
    assert ended.stderr == f"python -m threadbridge: {message}\n"


def test_a_mistake_in_the_environment_names_the_variable(directory: Path) -> None:
    ended = threadbridge(directory, "site_app:app", THREADBRIDGE_PORT="tcp://10.0.0.1:80")
    assert ended.returncode == 2
    assert ended.stderr.startswith(
        "python -m threadbridge: THREADBRIDGE_PORT=tcp://10.0.0.1:80: expected a number from 0 to 65535"
    )


@pytest.mark.parametrize(
    ("source", "cause"),
    [
        ("x = 1 / 0", "ZeroDivisionError: division by zero"),
        ("import absent_library", "ModuleNotFoundError: No module named 'absent_library'"),
        ("x = = 1", "SyntaxError: invalid syntax (broken.py, line 1)"),
    ],
)
def test_a_mistake_inside_the_module_is_shown_with_its_place(directory: Path, source: str, cause: str) -> None:
    (directory / "broken.py").write_text(source + "\n")
    ended = threadbridge(directory, "broken:app", "--threads=1")
    assert ended.returncode == 2
    *traceback, line = ended.stderr.splitlines()
    assert line.startswith(f"python -m threadbridge: broken:app: cannot import broken: {cause}")
    assert traceback[0] == "Traceback (most recent call last):"
    assert any('broken.py", line 1' in row for row in traceback)


@pytest.mark.parametrize("name", ["_handle_read", "_read_buffer"])
def test_a_tornado_whose_streams_are_others_is_named_at_the_start(name: str) -> None:
    # As another version might have it: without the method, or with another name in its constructor.
    program = f"""
import sys
from tornado.iostream import BaseIOStream, IOStream, SSLIOStream
if {name!r} == "_handle_read":
    for each in (BaseIOStream, SSLIOStream):
        del each._handle_read
else:
    made = BaseIOStream.__init__.__code__
    names = tuple(each if each != {name!r} else "_other" for each in made.co_names)
    BaseIOStream.__init__.__code__ = made.replace(co_names=names)
from threadbridge import run
sys.exit(run(lambda environ, start_response: [], threads=1))
"""
    ended = subprocess.run(
        [sys.executable, "-c", program, "--port=0"], cwd=ROOT, capture_output=True, text=True, timeout=30
    )
    assert ended.returncode == 2
    [line] = ended.stderr.splitlines()
    assert f"have no {name}; this version of threadbridge needs Tornado 6.5 or later, below 7: install that" in line
