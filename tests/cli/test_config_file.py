"""A config file in Python: settings and hooks."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from tornado.httputil import HTTPHeaders

from tests.support.inprocess import wait_until
from tests.support.site_process import Process
from tests.support.supervised import Supervised
from threadbridge import Lane
from threadbridge.settings.resolving import resolve
from threadbridge.settings.values import ImportPath, SettingError

# Those that take long run on demand.
on_demand = pytest.mark.skipif("RENEWING" not in os.environ, reason="takes long: set RENEWING=1")

SETTINGS = """
import os
from threadbridge import Lane

_megabyte = 1024**2
port = 8123
memory_size = 3 * _megabyte
max_body_size = "2M"
processes = len([1, 2])
trusted_proxies = ["10.0.0.1", "10.0.0.2"]
lanes = [Lane("slow", "/slow/*", threads=1, queue=7)]
pool = "shop:db.pool"
client_key = lambda headers, address: address


def on_worker_start():
    pass
"""


def test_it_gives_settings_by_their_names(tmp_path: Path) -> None:
    file = tmp_path / "threadbridge_conf.py"
    file.write_text(SETTINGS)
    resolved = resolve({"config": [str(file)], "port": ["9000"]}, {"THREADBRIDGE_PROCESSES": "3"}, {"grace": 5.0})
    settings = resolved.values
    assert (settings["port"], settings["processes"], settings["grace"]) == (9000, 3, 5.0)
    assert (settings["memory_size"], settings["max_body_size"]) == (3 * 1024**2, 2 * 1024**2)
    assert settings["trusted_proxies"] == ["10.0.0.1", "10.0.0.2"]
    [lane] = settings["lanes"]
    assert isinstance(lane, Lane) and lane.queue == 7
    assert settings["pool"] == ["shop:db.pool"] and isinstance(settings["pool"][0], ImportPath)
    assert settings["client_key"] is not None and settings["client_key"](HTTPHeaders(), "a") == "a"
    assert callable(settings["on_worker_start"])
    assert [resolved.origins[name] for name in ("port", "processes", "memory_size", "deadline")] == [
        "command line",
        "environment",
        str(file),
        "default",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prot = 1", r"prot: there is no setting of this name; did you mean port\?; start the names of your own"),
        ("def on_worker_strat(): pass", "did you mean on_worker_start"),
        ("port = 'x'", "port = x: expected a number from 0 to 65535"),
        ("port = 1.5", "port = 1.5: expected a number from 0 to 65535"),
        ("on_start = 5", "on_start = 5: expected a function"),
        ("check = True", "this setting cannot be given in a config file"),
        ("1 / 0", "raised ZeroDivisionError: division by zero"),
        ("port =", "raised SyntaxError"),
    ],
)
def test_its_mistakes_are_clear(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "conf.py"
    file.write_text(text)
    with pytest.raises(SettingError, match=message):
        resolve({"config": [str(file)]}, {}, {})
    with pytest.raises(SettingError, match="cannot read the config file"):
        resolve({"config": [str(tmp_path / "missing.py")]}, {}, {})


HOOKS = """
import os

def _note(name):
    with open("notes", "a") as file:
        file.write(f"{name} {os.getpid()}\\n")

def on_starting():
    _note("starting")

def on_worker_start():
    _note("worker_start")

def on_start():
    _note("start")

def on_worker_exit():
    _note("worker_exit")
"""


def notes(directory: Path) -> list[str]:
    return (directory / "notes").read_text().splitlines()


def test_hooks_are_called_in_their_processes(tmp_path: Path) -> None:
    (tmp_path / "conf.py").write_text(HOOKS)
    with Supervised(tmp_path, "--config=conf.py") as server:
        first = server.wait_for_both()
        assert notes(tmp_path)[0] == f"starting {server.process.pid}"
        server.process.send_signal(signal.SIGUSR2)
        wait_until(lambda: len(server.pids() - first) == 2 == len(server.pids()), "the reload", 30)
        everybody = first | server.pids()
        assert server.stop() == 0
    names = ("worker_start", "start", "worker_exit")
    assert [line for line in notes(tmp_path) if line.startswith("starting")] == [f"starting {server.process.pid}"]
    for pid in everybody:
        assert [line for line in notes(tmp_path) if line.endswith(f" {pid}")] == [f"{name} {pid}" for name in names]


@on_demand
def test_hooks_by_import_paths_in_one_process(tmp_path: Path) -> None:
    (tmp_path / "hooks.py").write_text(HOOKS)
    (tmp_path / "conf.toml").write_text('on_starting = "hooks:on_starting"\non_worker_exit = "hooks:on_worker_exit"\n')
    with Process(tmp_path, "--port={port}", "--config=conf.toml", "--on_worker_start=hooks:on_worker_start") as server:
        pid = server.process.pid
        assert notes(tmp_path) == [f"starting {pid}", f"worker_start {pid}"]
        assert server.stop() == 0
    assert notes(tmp_path)[2:] == [f"worker_exit {pid}"]


@on_demand
def test_a_hook_that_fails_at_the_end_is_logged_and_at_the_start_ends_the_process(tmp_path: Path) -> None:
    (tmp_path / "conf.py").write_text("def on_worker_exit():\n    raise LookupError('as ordered')\n")
    with Process(tmp_path, "--port={port}", "--config=conf.py") as server:
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(30) == 0
        assert "on_worker_exit has failed" in server.output() and "LookupError: as ordered" in server.output()
    (tmp_path / "conf.py").write_text("def on_worker_start():\n    raise LookupError('as ordered')\n")
    ended = Supervised(tmp_path, "--config=conf.py").run_to_its_end()
    assert ended.returncode == 1 and "LookupError: as ordered" in ended.stderr
