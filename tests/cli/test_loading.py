"""The application's import path: attributes, factories and their arguments, and what is said about mistakes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from tests.support.doctor_report import Report, run_check
from tests.support.supervised import Supervised
from threadbridge.cli.loading import ApplicationError, load_application
from threadbridge.settings.values import SettingError

SITE = """
made = []

class Site:
    def __init__(self, *args, **kwargs):
        self.args, self.kwargs = args, kwargs

    def __call__(self, environ, start_response):
        start_response("200 OK", [])
        return [repr((self.args, self.kwargs)).encode()]

    def create(self, name):
        return Site(name)

def create_app(config=None, *, debug=False, **options):
    made.append((config, debug))
    return Site(config, debug, **options)

def broken(config):
    return config["absent"]

def create_number():
    return 5

site = Site()
number = 5
"""


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module ``factory_site`` that can be imported."""
    (tmp_path / "factory_site.py").write_text(SITE)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("factory_site", None)


@pytest.mark.parametrize(
    ("expression", "args", "kwargs"),
    [
        ("site", (), {}),
        ("create_app()", (None, False), {}),
        ("create_app('test')", ("test", False), {}),
        ('create_app("a:b, c(d)", debug=True)', ("a:b, c(d)", True), {}),
        ("create_app({'x': [1, -2.5, None]}, y=('a',))", ({"x": [1, -2.5, None]}, False), {"y": ("a",)}),
        ("site.create('inner')", ("inner",), {}),
        ("Site(1)", (1,), {}),
    ],
)
def test_a_factory_is_called_once_with_its_arguments(
    expression: str, args: tuple[object, ...], kwargs: dict[str, object]
) -> None:
    site = load_application(f"factory_site:{expression}")
    assert (site.args, site.kwargs) == (args, kwargs)
    assert len(sys.modules["factory_site"].made) == expression.startswith("create_app(")


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("create_app(", "'(' was never closed; expected MODULE:APP or MODULE:FACTORY(ARGUMENTS)"),
        ("create_app() + 1", "expected MODULE:APP or MODULE:FACTORY(ARGUMENTS), such as shop:create_app()"),
        ("create_app()()", "expected MODULE:APP or MODULE:FACTORY(ARGUMENTS), such as shop:create_app()"),
        ("made[0]()", "expected MODULE:APP or MODULE:FACTORY(ARGUMENTS), such as shop:create_app()"),
        ("create_app(number)", "the arguments must be literals, such as 'test', 5, None or [1, 2]"),
        ("create_app(*[1])", "the arguments must be literals, such as 'test', 5, None or [1, 2]"),
        ("create_app(**{'debug': 1})", "the arguments must be literals, such as 'test', 5, None or [1, 2]"),
        ("create_app(__import__('os').getcwd())", "the arguments must be literals, such as"),
        ("number()", "number is not callable; leave out the parentheses if it is the application"),
        ("broken()", "broken(config) cannot be called like this: missing a required argument: 'config'"),
        ("create_number(1)", "create_number() cannot be called like this: too many positional arguments"),
        ("absent()", "module 'factory_site' has no attribute 'absent'"),
        ("broken({})", "broken raised KeyError: 'absent'"),
        ("broken('text')", "broken raised TypeError: string indices must be integers, not 'str'"),
    ],
)
def test_a_mistake_is_named(expression: str, message: str) -> None:
    with pytest.raises(SettingError) as raised:
        load_application(f"factory_site:{expression}")
    assert str(raised.value).startswith(f"factory_site:{expression}: {message}")


def test_an_error_in_the_factory_is_shown_with_its_place() -> None:
    with pytest.raises(ApplicationError) as error:
        load_application("factory_site:broken({})")
    assert "in broken\n    return config" in error.value.traceback


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("create_number()", "5 cannot be called; expected a WSGI application"),
        (
            "broken",
            "is called with (config), but a WSGI application with (environ, start_response) (PEP 3333). If it is ",
        ),
    ],
)
def test_what_a_factory_returns_must_be_an_application(module: Path, expression: str, message: str) -> None:
    command = [sys.executable, "-m", "threadbridge", f"factory_site:{expression}", "--check"]
    ended = subprocess.run(command, cwd=module, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert message in ended.stderr


def test_the_check_calls_the_factory(module: Path) -> None:
    command = ["-m", "threadbridge", "factory_site:create_app('test')", "--threads=2", "--json"]
    assert Report(run_check(command, {}, cwd=module)).bad == {}


def test_each_of_several_processes_calls_the_factory(module: Path) -> None:
    server = Supervised(module)
    server.command = [part.replace("site_app:app", "factory_site:create_app('x', debug=1)") for part in server.command]
    with server:
        assert requests.get(f"http://127.0.0.1:{server.port}/", timeout=30).content == b"(('x', 1), {})"
        assert server.stop() == 0
