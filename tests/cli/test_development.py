"""``threadbridge dev``, ``flask bridge``, ``manage.py runbridge``: what a developer starts, and sees of requests."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import pytest

from tests.support.development import FLASK, Development, Terminal
from tests.support.inprocess import wait_until
from tests.support.processes import free_port

DJANGO_SETTINGS = """
import os
SECRET_KEY = "a test"
DEBUG = True
ALLOWED_HOSTS = ["127.0.0.1"]
ROOT_URLCONF = "site_urls"
INSTALLED_APPS = ["django.contrib.staticfiles", "threadbridge.django"]
STATIC_URL = "static/"
STATICFILES_DIRS = ["assets"]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "site.db"}}
"""

DJANGO_URLS = """
import os
from django.db import connection
from django.http import HttpResponse
from django.urls import path

def index(request):
    with connection.cursor() as cursor:
        cursor.execute("SELECT 40 + 2")
        return HttpResponse(f"version 1: {cursor.fetchone()[0]} {os.getpid()}")

urlpatterns = [path("", index)]
"""

MANAGE = """
import os, sys
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "site_settings")
from django.core.management import execute_from_command_line
execute_from_command_line(sys.argv)
"""


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    (tmp_path / "shop.py").write_text(FLASK)
    return tmp_path


def test_each_request_has_a_line_with_its_sql(shop: Path) -> None:
    with Development(shop, "threadbridge", "dev", "shop:create_app()", "--port={port}") as site:
        assert site.page("/orders").text == "Ann 1, Ann 2, Ann 3, Ann 4, Ann 5"
        assert site.page("/slow").text == "3000000"
        with socket.create_connection(("127.0.0.1", site.port)) as client:
            client.sendall(b"GET /\x1b[31m\x9b32m HTTP/1.0\r\n\r\n")
            assert client.recv(1000).startswith(b"HTTP/1.1 400")
        site.wait_for_output(r"400 GET /\x1B[31m\x9B32m")
        assert site.page("/missing").status_code == 404
        site.wait_for_output("GET /missing")
        lines = site.output().splitlines()
        [orders] = [number for number, line in enumerate(lines) if "GET /orders" in line]
        assert re.fullmatch(r"\d\d:\d\d:\d\d 200 GET /orders [\d.]+ ms, 6 SQL [\d.]+ ms", lines[orders])
        n_plus_one = r"    N\+1: 5 times, [\d.]+ ms: SELECT name FROM customers WHERE id = \?"
        assert re.fullmatch(n_plus_one, lines[orders + 1])
        [slow] = [number for number, line in enumerate(lines) if "GET /slow" in line]
        assert re.fullmatch(r"    slow: \d+ ms: WITH RECURSIVE n\(i\) AS .* FROM n", lines[slow + 1])
        assert any(re.fullmatch(r"\d\d:\d\d:\d\d 404 GET /missing [\d.]+ ms", line) for line in lines)
        # No terminal, no colors, and nothing that a client could send to one.
        assert not {"\x1b", "\x9b"} & set(site.output())
        # The operators' port has been chosen.
        assert re.search(r"operators: http://127\.0\.0\.1:\d+/", site.output())
        assert site.stop() == 0


def test_environment_files_are_read_and_read_again(shop: Path) -> None:
    port = free_port()
    # Above the directory in which it starts.
    file = shop / ".env"
    file.write_text(f"GREETING=hello\nTHREADBRIDGE_PORT={port}\nFLASK_DEBUG=0\n")
    (shop / "below").mkdir()
    shop = (shop / "shop.py").rename(shop / "below" / "shop.py").parent
    site = Development(shop, "threadbridge", "dev", "shop:create_app()", FLASK_DEBUG="1")
    site.port, site.url = port, f"http://127.0.0.1:{port}"
    with site:
        # The environment takes precedence over the file.
        assert site.page().text == f"hello True {site.process.pid}"
        file.write_text(f"GREETING=goodbye\nTHREADBRIDGE_PORT={port}\n")
        assert site.wait_for("goodbye") == f"goodbye True {site.process.pid}"


def test_what_a_developer_may_not_expect_is_said(shop: Path) -> None:
    (shop / ".env").write_text("GREETING=hello\n")
    (shop / "dotenv.py").write_text("raise ImportError('not for this test')\n")
    command = ("threadbridge", "dev", "shop:create_app()", "--port={port}", "--address=0.0.0.0")
    with Development(shop, *command) as site:
        assert site.page().text.startswith("None")
        assert "python-dotenv is not installed" in site.output()
        assert "it listens on 0.0.0.0" in site.output()


@pytest.mark.parametrize(("variables", "colors"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_a_terminal_shows_colors_unless_told_not_to(shop: Path, variables: dict[str, str], colors: bool) -> None:
    site = Development(shop, "threadbridge", "dev", "shop:create_app()", "--port={port}")
    with Terminal(site.command, {**site.env, "TERM": "xterm-256color", **variables}, shop) as terminal:
        seen = terminal.seen
        wait_until(lambda: b"Serving on" in seen, "it serves")
        assert site.page("/orders").status_code == 200
        wait_until(lambda: b"N+1" in seen, "the request is shown")
    assert (b"\x1b[32m200\x1b[0m" in seen) is colors
    assert (b"\x1b[35m    N+1" in seen) is colors
    assert (b"\x1b" in seen) is colors


def test_flask_has_a_command(shop: Path) -> None:
    (shop / ".flaskenv").write_text("GREETING=hello\n")
    command = ("flask", "--app", "shop", "--debug", "bridge", "--port={port}")
    with Development(shop, *command) as site:
        assert site.page().text == f"hello True {site.process.pid}"
        (shop / ".flaskenv").write_text("GREETING=goodbye\n")
        assert site.wait_for("goodbye") == f"goodbye True {site.process.pid}"


def test_django_has_a_command(tmp_path: Path) -> None:
    # Started from elsewhere, as an editor may do.
    project = tmp_path / "project"
    (project / "assets").mkdir(parents=True)
    (project / "assets" / "site.css").write_text("body {}")
    for name, text in (("site_settings", DJANGO_SETTINGS), ("site_urls", DJANGO_URLS), ("manage", MANAGE)):
        (project / f"{name}.py").write_text(text.replace('"assets"', repr(str(project / "assets"))))
    with Development(tmp_path, "python", "project/manage.py", "runbridge", "127.0.0.1:{port}") as site:
        assert site.page().text == f"version 1: 42 {site.process.pid}"
        assert site.page("/static/site.css").text == "body {}"
        site.wait_for_output("200 GET /static/site.css")
        assert "System check identified no issues" in site.output()
        assert re.search(r"200 GET / [\d.]+ ms, 1 SQL", site.output())
        # A mistake for which manage.py itself would end.
        settings = (project / "site_settings.py").read_text()
        (project / "site_settings.py").write_text(f"{settings}\nimport not_there_at_all\n")
        site.wait_for("ModuleNotFoundError")
        (project / "site_settings.py").write_text(settings)
        assert site.wait_for("version 1") == f"version 1: 42 {site.process.pid}"
