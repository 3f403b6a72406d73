"""Django with its admin on MariaDB, served by the bridge and used as people with browsers use it."""

from __future__ import annotations

import importlib.resources
import os
import random
import re
import secrets
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import MySQLdb
import pytest
import requests

from tests.support.inprocess import wait_until
from tests.support.processes import ROOT, Frontend

THREADS = 10
SERVE = ("-m", "threadbridge", "tests.djangosite.wsgi:app", f"--threads={THREADS}", "--port={port}")
TIMEOUT = 30
ADD = "/admin/djangosite/document/add/"
LIST = "/admin/djangosite/document/"


class Database:
    """The database as the test sees it, beside Django."""

    def __init__(self, mariadb: dict[str, str]) -> None:
        self._connection = MySQLdb.connect(
            unix_socket=mariadb["MYSQL_UNIX_SOCKET"],
            user=mariadb["MYSQL_USER"],
            password=Path(mariadb["MYSQL_PASSWORD_FILE"]).read_text().strip(),
            database=mariadb["MYSQL_DATABASE"],
            autocommit=True,
        )

    def column(self, statement: str) -> set[Any]:
        """The first column of a statement's result."""
        with self._connection.cursor() as cursor:
            cursor.execute(statement)
            return {row[0] for row in cursor.fetchall()}

    def connections(self) -> set[int]:
        """The ids of all connections of the user."""
        return self.column("SELECT id FROM information_schema.processlist WHERE user = SUBSTRING_INDEX(USER(), '@', 1)")

    def close(self) -> None:
        self._connection.close()


@dataclass
class Site:
    """The served site."""

    url: str
    media: Path
    password: str
    database: Database
    foreign_connections: set[int]

    def connections(self) -> int:
        """How many database connections Django has open."""
        return len(self.database.connections() - self.foreign_connections)


@pytest.fixture(scope="module")
def site(mariadb: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    media = tmp_path_factory.mktemp("media")
    password = secrets.token_urlsafe()
    settings = {
        **mariadb,
        "DJANGO_SETTINGS_MODULE": "tests.djangosite.settings",
        "DJANGO_SECRET_KEY": secrets.token_urlsafe(),
        "DJANGO_MEDIA_ROOT": str(media),
    }
    database = Database(mariadb)
    others = database.column("SHOW TABLES")
    try:
        for command in (["migrate", "--run-syncdb", "--verbosity=0"], ["createsuperuser", "--noinput"]):
            administrator = {"USERNAME": "admin", "EMAIL": "admin@example.org", "PASSWORD": password}
            environment = {f"DJANGO_SUPERUSER_{name}": value for name, value in administrator.items()}
            subprocess.run(
                [sys.executable, "-m", "django", *command],
                check=True,
                cwd=ROOT,
                env={**os.environ, **settings, **environment},
            )
        foreign = database.connections()
        with Frontend(SERVE, env=settings) as frontend:
            yield Site(frontend.url, media, password, database, foreign)
            assert frontend.stop() == 0
            assert "Traceback" not in frontend.output(), frontend.output()
    finally:
        # Whoever loads the sample data later expects an empty database.
        database.column("SET FOREIGN_KEY_CHECKS = 0")
        for table in database.column("SHOW TABLES") - others:
            database.column(f"DROP TABLE `{table}`")
        database.close()


class Browser(requests.Session):
    """Fetches pages and submits the forms on them, with their hidden token, as a browser does."""

    def __init__(self, site: Site) -> None:
        super().__init__()
        self.site = site

    def open(self, path: str, **parameters: str) -> requests.Response:
        """Fetch a page."""
        return self.get(self.site.url + path, params=parameters, timeout=TIMEOUT)

    def form(
        self, path: str, fields: dict[str, str], files: dict[str, Any] | None = None, *, page: str | None = None
    ) -> requests.PreparedRequest:
        """Fetch the page and fill in its form, which goes to ``path``, by default the page's own."""
        shown = self.open(page or path)
        token = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', shown.text)
        assert token is not None, f"{shown.status_code}: {shown.text}"
        data = {**fields, "csrfmiddlewaretoken": token[1]}
        headers = {"Referer": shown.url, "Origin": self.site.url}
        return self.prepare_request(requests.Request("POST", self.site.url + path, headers, files, data))

    def submit(
        self, path: str, fields: dict[str, str], files: dict[str, Any] | None = None, *, page: str | None = None
    ) -> requests.Response:
        """Fetch the page, fill in its form and submit it; the page this leads to."""
        return self.send(self.form(path, fields, files, page=page), timeout=TIMEOUT)

    def log_in(self) -> requests.Response:
        """Log in as the administrator."""
        fields = {"username": "admin", "password": self.site.password, "next": "/admin/"}
        return self.submit("/admin/login/", fields)

    def documents(self, **search: str) -> dict[str, str]:
        """The list of documents: the path of each by its title."""
        page = self.open(LIST, **search)
        assert page.status_code == 200
        found = re.findall(r'class="field-title"><a href="([^"?]+)[^"]*">([^<]+)</a>', page.text)
        return {title: path for path, title in found}


@pytest.fixture
def browser(site: Site) -> Iterator[Browser]:
    with Browser(site) as browser:
        yield browser


@pytest.fixture
def administrator(browser: Browser) -> Browser:
    assert browser.log_in().status_code == 200
    return browser


def facts(title: str, kind: str = "report") -> dict[str, str]:
    return {"title": title, "kind": kind, "pages": "12", "published": "2026-11-20", "_save": "Save"}


def test_the_door(browser: Browser) -> None:
    outside = browser.open("/admin/")
    assert outside.url.endswith("/admin/login/?next=/admin/")
    refused = browser.submit("/admin/login/", {"username": "admin", "password": "wrong"})
    assert "Please enter the correct username and password" in refused.text
    forged = browser.post(f"{browser.site.url}/admin/login/", data={"username": "admin"}, timeout=TIMEOUT)
    assert (forged.status_code, "CSRF verification failed" in forged.text) == (403, True)
    inside = browser.log_in()
    assert [step.status_code for step in inside.history] == [302]
    assert "Site administration" in inside.text and "Log out" in inside.text
    assert "Logged out" in browser.submit("/admin/logout/", {}, page="/admin/").text
    assert browser.open("/admin/").url.endswith("/admin/login/?next=/admin/")


def test_the_life_of_a_document(administrator: Browser) -> None:
    site = administrator.site
    content = random.Random(1).randbytes(3_000_000)
    added = administrator.submit(ADD, facts("A first report"), {"file": ("first.bin", content)})
    assert "was added successfully" in added.text
    path = administrator.documents()["A first report"]
    assert (site.media / "documents" / "first.bin").read_bytes() == content

    number = path.split("/")[-3]
    for _ in range(3):
        downloaded = administrator.open(f"/documents/{number}/")
        assert downloaded.content == content
        assert downloaded.headers["Content-Length"] == str(len(content))
        assert downloaded.headers["Content-Disposition"] == 'attachment; filename="first.bin"'
    head = administrator.head(f"{site.url}/documents/{number}/", timeout=TIMEOUT)
    assert (head.headers["Content-Length"], head.content) == (str(len(content)), b"")

    form = administrator.open(path).text
    assert 'value="A first report"' in form and "documents/first.bin" in form
    edited = administrator.submit(path, facts("A better letter", "letter"), {"file": ("second.bin", b"short")})
    assert "was changed successfully" in edited.text
    assert administrator.documents() == {"A better letter": path}
    assert (
        administrator.documents(q="better")
        == administrator.documents(kind__exact="letter")
        == {"A better letter": path}
    )
    assert administrator.documents(q="first") == administrator.documents(kind__exact="report") == {}
    assert administrator.open(f"/documents/{number}/").content == b"short"
    assert "Changed Title, Kind and File." in administrator.open(path.replace("change", "history")).text

    deleted = administrator.submit(path.replace("change", "delete"), {"post": "yes"})
    assert "was deleted successfully" in deleted.text
    assert administrator.documents() == {}
    assert administrator.open(f"/documents/{number}/").status_code == 404


def test_a_form_with_a_mistake_comes_back(administrator: Browser) -> None:
    again = administrator.submit(ADD, {**facts("Impossible"), "pages": "-1"}, {"file": ("never.bin", b"x")})
    assert "Please correct the error below" in again.text and 'value="Impossible"' in again.text
    assert administrator.documents() == {}
    assert not (administrator.site.media / "documents" / "never.bin").exists()


def test_an_upload_of_unknown_length(administrator: Browser) -> None:
    content = random.Random(2).randbytes(3_000_000)
    form = administrator.form(ADD, facts("Sent in pieces"), {"file": ("pieces.bin", content)})
    whole = form.body
    assert isinstance(whole, bytes) and form.url is not None
    pieces = (whole[at : at + 50_000] for at in range(0, len(whole), 50_000))
    headers = {name: form.headers[name] for name in ("Content-Type", "Referer", "Origin")}
    added = administrator.post(form.url, data=pieces, headers=headers, timeout=TIMEOUT)
    assert added.history[0].request.headers["Transfer-Encoding"] == "chunked"
    assert "was added successfully" in added.text
    assert (administrator.site.media / "documents" / "pieces.bin").read_bytes() == content
    administrator.submit(administrator.documents()["Sent in pieces"].replace("change", "delete"), {"post": "yes"})


def test_static_files(browser: Browser) -> None:
    package = importlib.resources.files("django") / "contrib" / "admin"
    paths = re.findall(r'(?:href|src)="(/static/[^"]+)"', browser.open("/admin/login/").text)
    assert len(paths) > 3
    for path in paths:
        file = browser.open(path)
        assert file.content == package.joinpath(path.lstrip("/")).read_bytes()
        assert file.headers["Content-Length"] == str(len(file.content))
        unchanged = {"If-Modified-Since": file.headers["Last-Modified"]}
        assert browser.get(file.url, headers=unchanged, timeout=TIMEOUT).status_code == 304
    assert browser.open("/static/admin/none.css").status_code == 404


def test_ten_people_at_once(site: Site) -> None:
    def work(number: int) -> str:
        with Browser(site) as browser:
            assert "Site administration" in browser.log_in().text
            content = random.Random(number).randbytes(300_000)
            title = f"Paper {number}"
            added = browser.submit(ADD, facts(title), {"file": (f"paper{number}.bin", content)})
            assert f"{title}</a>” was added successfully" in added.text
            path = browser.documents()[title]
            assert browser.open(f"/documents/{path.split('/')[-3]}/").content == content
            assert title in browser.open("/titles/").text.splitlines()
            return browser.cookies["sessionid"]

    with ThreadPoolExecutor(THREADS) as people:
        assert len(set(people.map(work, range(THREADS)))) == THREADS
    titles = [f"Paper {number}" for number in range(THREADS)]
    with requests.get(f"{site.url}/titles/", stream=True, timeout=TIMEOUT) as stream:
        assert "Content-Length" not in stream.headers
        assert list(stream.iter_lines()) == [title.encode() for title in titles]
    # Django closes its connection in the response's close(), and only that of the thread that calls it.
    # One that stops the queries of cancelled requests stays open.
    wait_until(lambda: site.connections() == 1, "every connection of the application is closed")
    with Browser(site) as browser:
        browser.log_in()
        assert set(browser.documents()) == set(titles)
        for path in browser.documents().values():
            browser.submit(path.replace("change", "delete"), {"post": "yes"})
