"""Runs ``--check`` in a process and reads what it says."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.support.processes import ROOT

# The subjects in order: those of every check, and those of one with a pool of connections to MySQL.
NO_DATABASE = ["versions", "interpreter", "pool", "hot path", "queues", "open files", "uploads", "temporary files"]
MYSQL = ["database", "connections", "idle connections", "stopping queries", "statement limit", "clock", "time zone"]

SITE = """
def app(environ, start_response):
    start_response("200 OK", [])
    return []
"""


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


def check_without_pool(directory: Path, *arguments: str, **options: Any) -> Report:
    (directory / "site_app.py").write_text(SITE)
    command = ["-m", "threadbridge", "site_app:app", "--threads=1", "--json", *arguments]
    return Report(run_check(command, {}, cwd=directory, **options))


def allow_many_files() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
