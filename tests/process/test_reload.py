"""``--reload``: files of a real application are edited while a real server serves it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import requests

from tests.support.development import Terminal
from tests.support.inprocess import wait_until
from tests.support.processes import ROOT, Frontend
from tests.support.site_process import ask_on_its_own, entered

FACTORY = """
import os
import flask

def create_app(word, *, mark="!"):
    app = flask.Flask(__name__)

    @app.get("/")
    def index():
        return flask.render_template("index.html", word=word + mark, pid=os.getpid())

    return app
"""

# /slow?FLAG makes FLAG.entered, and goes on when FLAG is there.
PLAIN = """
import atexit, os, time
from threadbridge import current

atexit.register(lambda: open("ended", "a").write("ended "))

def app(environ, start_response):
    flag = environ["QUERY_STRING"]
    if environ["PATH_INFO"] == "/slow":
        current().on_cancel(lambda: open(flag + ".cancelled", "w").close())
        open(flag + ".entered", "w").close()
        while not (os.path.exists(flag) or os.path.exists(flag + ".cancelled")):
            time.sleep(0.01)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"version 1, pid %d" % os.getpid()]
"""


class Site(Frontend):
    """``python -m threadbridge --reload`` in this directory, which is not below the source tree."""

    def __init__(self, directory: Path, application: str, *arguments: str) -> None:
        command = ("-m", "threadbridge", application, "--port={port}", "--reload", *arguments)
        super().__init__(command, cwd=directory)
        # Not the source tree as a directory of the application's: others may be editing it.
        del self.env["PYTHONPATH"]

    def page(self, accept: str = "*/*") -> requests.Response:
        return requests.get(self.url, timeout=30, headers={"Accept": accept})

    def wait_for(self, text: str) -> requests.Response:
        """The first page with this text."""
        found: list[requests.Response] = []

        def is_there() -> bool:
            found[:] = [self.page()]
            return text in found[0].text

        wait_until(is_there, f"{text}; {self.output()}")
        return found[0]


def edit(file: Path, old: str, new: str) -> None:
    """As editors do: a new file takes the old one's place."""
    text = file.read_text()
    assert old in text
    draft = file.with_name(f".{file.name}.draft")
    draft.write_text(text.replace(old, new))
    draft.rename(file)


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[Site]:
    (tmp_path / "shop.py").write_text(PLAIN)
    with Site(tmp_path, "shop:app", "--threads=4") as site:
        yield site


def test_sources_templates_and_included_files_are_served_anew_by_the_same_process(tmp_path: Path) -> None:
    package = tmp_path / "shop"
    (package / "templates").mkdir(parents=True)
    (package / "templates" / "index.html").write_text("template 1: {{ word }} {{ pid }}")
    (package / "__init__.py").write_text(FACTORY)
    outside = tmp_path.parent / f"{tmp_path.name}-outside"
    outside.mkdir()
    (outside / "texts.po").write_text("")
    include = ("--reload_include=*.toml", f"--reload_include={outside}/*.po")
    with Site(tmp_path, 'shop:create_app("hello", mark="?")', *include) as site:
        assert site.page().text == f"template 1: hello? {site.process.pid}"
        edit(package / "templates" / "index.html", "template 1", "template 2")
        assert site.wait_for("template 2").text == f"template 2: hello? {site.process.pid}"
        # These matter to nobody. What they would cause comes before what the next file does.
        (tmp_path / "venv").mkdir()
        (tmp_path / "venv" / "pyvenv.cfg").touch()
        for name in ("notes.txt", ".hidden/module.py", "node_modules/module.py", "venv/module.py"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text("")
        # In a directory that is new.
        (package / "parts" / "inner").mkdir(parents=True)
        for number, file in enumerate(
            (package / "parts" / "inner" / "more.py", tmp_path / "shop.toml", outside / "texts.po"), 3
        ):
            file.write_text("changed = 1")
            wait_until(lambda file=file: f"{file.name} changed: reload" in site.output(), site.output())  # type: ignore[misc]
            wait_until(lambda number=number: site.output().count("Serving on") == number, site.output())  # type: ignore[misc]
        assert site.output().count("changed: reload") == 4
        assert all(text not in site.output() for text in ("notes.txt", "module.py", "more files"))
        assert site.page().text == f"template 2: hello? {site.process.pid}"
        assert site.stop() == 0


def test_no_connection_is_refused_and_no_request_lost_during_reloads(plain: Site) -> None:
    answers: list[str] = []
    failures: list[Exception] = []
    enough = threading.Event()

    def ask() -> None:
        while not enough.is_set():
            try:
                # A connection of its own each.
                answers.append(plain.page().text)
            except requests.RequestException as error:
                failures.append(error)

    askers = [threading.Thread(target=ask) for _ in range(3)]
    for asker in askers:
        asker.start()
    try:
        for version in range(1, 3):
            edit(plain.cwd / "shop.py", f"version {version}", f"version {version + 1}")
            wait_until(lambda wanted=f"version {version + 1}": wanted in "".join(answers[-1:]), plain.output())  # type: ignore[misc]
    finally:
        enough.set()
        for asker in askers:
            asker.join()
    assert failures == []
    assert {answer.partition(",")[0] for answer in answers} == {f"version {number}" for number in range(1, 4)}
    assert {answer.partition("pid ")[2] for answer in answers} == {str(plain.process.pid)}
    # The application's own end has run each time.
    assert (plain.cwd / "ended").read_text() == 2 * "ended "


def test_a_change_within_the_same_second_counts(plain: Site) -> None:
    """Python's cached bytecode is told apart by the second and the size."""
    source = plain.cwd / "shop.py"
    for version in range(1, 3):
        changed = source.with_suffix(".new")
        changed.write_text(source.read_text().replace(f"version {version}", f"version {version + 1}"))
        before = source.stat()
        os.utime(changed, ns=(before.st_atime_ns, before.st_mtime_ns // 10**9 * 10**9 + version))
        changed.replace(source)
        plain.wait_for(f"version {version + 1}")


def test_requests_may_end_and_those_that_do_not_are_cancelled(plain: Site) -> None:
    flag = plain.cwd / "flag"
    with closing(ask_on_its_own(plain.port, f"/slow?{flag}")) as client:
        wait_until(lambda: entered(flag), "it runs")
        edit(plain.cwd / "shop.py", "version 1", "version 2")
        plain.wait_for("version 2")
        # It was told, and has not been left to run on in a process that nobody sees.
        assert flag.with_name("flag.cancelled").exists()
        assert client.recv(1000).startswith((b"HTTP/1.1 503", b"HTTP/1.1 200", b""))


def test_a_signal_closes_the_port_that_a_reload_keeps(plain: Site) -> None:
    flag = plain.cwd / "flag"
    with closing(ask_on_its_own(plain.port, f"/slow?{flag}")) as client:
        wait_until(lambda: entered(flag), "it runs")
        plain.process.send_signal(signal.SIGTERM)

        def is_refused() -> bool:
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", plain.port)) != 0

        wait_until(is_refused, "the port is closed")
        assert plain.process.poll() is None
        flag.touch()
        assert b"200 OK" in client.recv(1000)
    assert plain.process.wait(30) == 0


def test_errors_of_the_application_are_shown_until_they_are_mended(tmp_path: Path) -> None:
    shop = tmp_path / "shop.py"
    mistakes = (
        ("def app(", "def app((", "SyntaxError"),
        ("import atexit, os", "import atexit, os, not_there_at_all", "ModuleNotFoundError"),
        ("def app(", "raise SystemExit('<over>')\ndef app(", "SystemExit: <over>"),
        ("def app(", "def other(", "has no attribute 'app'"),
    )
    # It may begin with one.
    shop.write_text(PLAIN.replace(*mistakes[0][:2]))
    with Site(tmp_path, "shop:app") as site:
        for right, wrong, shown in mistakes:
            shop.write_text(PLAIN.replace(right, wrong, 1))
            page = site.wait_for(shown)
            assert page.status_code == 500 and page.headers["Content-Type"].startswith("text/plain")
            assert shown in site.output() and "waiting until a file changes" in site.output()
            # Where the mistake is, and nothing of the server's own.
            assert "threadbridge/cli" not in page.text and "importlib" not in page.text
            html = site.page("text/html").text
            assert "<h1>The application cannot be loaded</h1>" in html and "<over>" not in html
        assert 'File "' in site.output()
        shop.write_text(PLAIN)
        site.wait_for("version 1")
        assert site.stop() == 0


def test_a_socket_of_a_library_does_not_outlive_the_reload(plain: Site) -> None:
    # As those of C libraries are, this one is inherited by programs.
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        connect = f"import socket; kept = socket.create_connection(('127.0.0.1', {port})); kept.set_inheritable(True)\n"
        edit(plain.cwd / "shop.py", "import atexit", f"{connect}import atexit")
        first, _ = listener.accept()
        plain.wait_for("version 1")
        edit(plain.cwd / "shop.py", connect, "")
        with first:
            first.settimeout(30)
            assert first.recv(1) == b""


def test_a_unix_socket_is_kept_and_removed_at_the_end(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(PLAIN)
    path = tmp_path / "s"
    site = Site(tmp_path, "shop:app")
    site.command = [part for part in site.command if not part.startswith("--port")] + [f"--unix_socket={path}"]
    site.process = subprocess.Popen(site.command, env=site.env, cwd=site.cwd, stdout=site._output, stderr=2)
    wait_until(lambda: "Serving on" in site.output(), "it serves")
    number = path.stat().st_ino
    edit(tmp_path / "shop.py", "version 1", "version 2")
    wait_until(lambda: site.output().count("Serving on") == 2, "it serves again")
    assert path.stat().st_ino == number
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(30)
        client.connect(str(path))
        client.sendall(b"GET / HTTP/1.0\r\nHost: a\r\n\r\n")
        assert b"200 OK" in client.recv(1000)
    assert site.stop() == 0
    assert not path.exists()


def test_pdb_reads_from_the_terminal_before_and_after_a_reload(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(PLAIN.replace("    start_response(", "    breakpoint()\n    start_response("))
    site = Site(tmp_path, "shop:app", "--threads=1")
    with Terminal(site.command, {**site.env, "TERM": "xterm"}, tmp_path) as terminal:
        seen = terminal.seen
        wait_until(lambda: b"Serving on" in seen, "it serves")
        with closing(ask_on_its_own(site.port, "/")):
            wait_until(lambda: b"(Pdb)" in seen, "pdb asks")
            # Now the terminal is in the mode in which pdb reads a line, and shows nothing that is typed by itself.
            edit(tmp_path / "shop.py", "version 1", "version 2")
            wait_until(lambda: seen.count(b"Serving on") == 2, "it serves again")
        terminal.enter("shown by the terminal")
        wait_until(lambda: b"shown by the terminal" in seen, "the terminal echoes")
        with closing(ask_on_its_own(site.port, "/")) as client:
            wait_until(lambda: seen.count(b"(Pdb)") >= 2, "pdb asks")
            terminal.enter("p 'in ' + 'pdb'")
            wait_until(lambda: b"'in pdb'" in seen, "pdb has answered")
            terminal.enter("c")
            assert b"version 2" in b"".join(iter(lambda: client.recv(1000), b""))


def test_what_cannot_be_reloaded_is_refused(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(PLAIN)
    (tmp_path / "own.py").write_text("import shop, threadbridge\nraise SystemExit(threadbridge.run(shop.app))\n")
    for command, reason in (
        (["-m", "threadbridge", "shop:app", "--reload", "--processes=2"], "reload needs processes=1"),
        (["own.py", "--reload"], "tornado.autoreload"),
    ):
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        ended = subprocess.run(
            [sys.executable, *command], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=30
        )
        assert ended.returncode == 2 and reason in ended.stderr and "Traceback" not in ended.stderr
