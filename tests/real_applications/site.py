"""Real applications: each in a virtual environment of its own, served here and by its usual server, and compared."""

from __future__ import annotations

import difflib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
import requests

from tests.support.processes import ROOT, Frontend

# Kept from one run to the next.
ENVIRONMENTS = ROOT / "build" / "real_applications"
# How many clients ask at the same time, and how often each.
CLIENTS, TIMES = 16, 10

needs_applications = pytest.mark.skipif(
    os.environ.get("REAL_APPLICATIONS") != "1", reason="on demand: REAL_APPLICATIONS=1"
)


class Answer(NamedTuple):
    """What of a response must not depend on the server."""

    request: str
    status: int
    content_type: str
    body: str


@dataclass
class Visitor:
    """A client that goes through an application, and notes what it is answered.

    :param base: the URL of the application.
    :param varying: regular expressions for what differs from one run to the next, such as tokens.
    """

    base: str
    varying: Sequence[str] = ()
    answers: list[Answer] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.session = requests.Session()
        # Links may leave out the scheme.
        address = f"(?:http:)?{re.escape(self.base.removeprefix('http:'))}"
        self._varying = re.compile("|".join((address, *self.varying)))

    def ask(self, method: str, path: str, *, status: int = 200, **options: Any) -> requests.Response:
        """Send a request, which must be answered with this status; redirects are not followed."""
        response: requests.Response = self.session.request(
            method,
            self.base + path,
            allow_redirects=False,
            timeout=60,
            **options,
        )
        assert response.status_code == status, (method, path, response.status_code, response.text[:2000])
        kind = response.headers.get("Content-Type", "")
        body = self._varying.sub("*", response.text + response.headers.get("Location", ""))
        self.answers.append(Answer(f"{method} {path}", response.status_code, kind, body))
        return response

    def get(self, path: str, **options: Any) -> str:
        """The text of a page that is there."""
        return self.ask("GET", path, **options).text

    def get_all_at_once(self, *paths: str) -> None:
        """Many clients ask for these pages at the same time, with this one's cookies; all get what one gets."""
        for path in paths:
            # Shows messages that are shown once.
            self.get(path)
        expected = {path: self._varying.sub("*", self.get(path)) for path in paths}
        cookies = self.session.cookies.get_dict()

        def ask(number: int) -> None:
            path = paths[number % len(paths)]
            response = requests.get(self.base + path, cookies=cookies, headers=self.session.headers, timeout=60)
            assert response.status_code == 200, (path, response.text[:2000])
            assert self._varying.sub("*", response.text) == expected[path], path

        with ThreadPoolExecutor(CLIENTS) as threads:
            list(threads.map(ask, range(CLIENTS * TIMES)))


def hidden_field(page: str, name: str) -> str:
    """The value of a form's hidden field, such as the token against CSRF."""
    for tag in re.findall(r"<input[^>]*>", page):
        if re.search(rf'name="{name}"', tag):
            found = re.search(r'value="([^"]*)"', tag)
            assert found is not None
            return found[1]
    raise AssertionError(f"no field {name} in: {page[:2000]}")


class Large(Frontend):
    """A server whose application has much to import."""

    patience = 240.0


class Environment:
    """A virtual environment with this package and an application from PyPI."""

    def __init__(self, name: str, *requirements: str) -> None:
        directory = ENVIRONMENTS / name
        self.python = directory / "bin" / "python"
        if not self.python.exists():
            subprocess.run([sys.executable, "-m", "venv", directory], check=True)
        # Always: the sources may have changed. pip does nothing for the others if they are there.
        for packages in (
            ("--force-reinstall", "--no-deps", str(ROOT)),
            ("tornado", "httptools", "click", *requirements),
        ):
            subprocess.run([self.python, "-m", "pip", "install", "--quiet", "--quiet", *packages], check=True)

    def package(self, name: str) -> Path:
        """The directory of an installed package."""
        [found] = (self.python.parent.parent / "lib").glob(f"python3*/site-packages/{name}")
        return found

    def run(self, *command: str, cwd: Path, env: Mapping[str, str] = MappingProxyType({})) -> str:
        """Run a program of the environment to its end."""
        return subprocess.run(
            [self.python, *command], cwd=cwd, env={**os.environ, **env}, check=True, capture_output=True, text=True
        ).stdout

    @contextmanager
    def serving(self, *command: str, cwd: Path, env: Mapping[str, str]) -> Iterator[Frontend]:
        """A server, inside the block."""
        # Otherwise the order of sets, in which some applications write attributes, would differ.
        fixed = {"PYTHONPATH": "", "PYTHONHASHSEED": "0"}
        with Large(command, python=self.python, env={**env, **fixed}, cwd=cwd) as server:
            yield server


def assert_same(
    visit: Callable[[Visitor], None],
    environment: Environment,
    data: Path,
    ours: Sequence[str],
    usual: Sequence[str],
    *,
    env: Mapping[str, str] = MappingProxyType({}),
    varying: Sequence[str] = (),
) -> str:
    """Visit an application behind both servers, each with a copy of the data; return what ours has logged.

    In commands and variables, ``{data}`` stands for the copy's directory, and ``{port}`` in commands for the port.
    """
    answers, logged = [], ""
    for name, command in (("ours", ours), ("usual", usual)):
        copy = data.with_name(f"{data.name}-{name}")
        shutil.copytree(data, copy)
        # Not `format`: the rest may have braces.
        here = [part.replace("{data}", str(copy)) for part in command]
        variables = {key: value.replace("{data}", str(copy)) for key, value in env.items()}
        with environment.serving(*here, cwd=copy, env=variables) as server:
            visitor = Visitor(server.url.rstrip("/"), [*varying, re.escape(str(copy))])
            try:
                visit(visitor)
            except BaseException:
                print(server.output())
                raise
            answers.append(visitor.answers)
            if name == "ours":
                assert server.stop() == 0, server.output()
                logged = server.output()
    assert len(answers[0]) == len(answers[1])
    differences = []
    for first, second in zip(*answers, strict=True):
        lines = difflib.unified_diff(first.body.splitlines(), second.body.splitlines(), "ours", "usual", n=0)
        if first != second:
            differences.append(f"{first[:3]} {second[:3]} {[line[:300] for line in lines][:12]}")
    assert not differences, "\n".join(differences)
    return logged
