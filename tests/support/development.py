"""What a developer starts in a directory: one of the commands, with a small application that uses a database."""

from __future__ import annotations

import os
import pty
import signal
import sys
import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import requests

from tests.support.inprocess import wait_until
from tests.support.processes import Frontend

BIN = Path(sys.executable).parent

# /orders asks for five orders, and then for each one's customer; /slow computes for a while; / asks for nothing.
FLASK = """
import os
import flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import text

db = SQLAlchemy()

def create_app():
    app = flask.Flask(__name__)
    app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite:///" + os.path.abspath("shop.db")
    db.init_app(app)
    with app.app_context():
        for statement in (
            "CREATE TABLE IF NOT EXISTS customers AS WITH RECURSIVE n(id) AS "
            "(SELECT 1 UNION ALL SELECT id + 1 FROM n LIMIT 5) SELECT id, 'Ann ' || id AS name FROM n",
        ):
            db.session.execute(text(statement))
        db.session.commit()

    @app.get("/")
    def index():
        return f"{os.environ.get('GREETING')} {app.debug} {os.getpid()}"

    @app.get("/orders")
    def orders():
        found = db.session.execute(text("SELECT id FROM customers WHERE id > 0 ORDER BY id")).all()
        names = [db.session.scalar(text(f"SELECT name FROM customers WHERE id = {row.id}")) for row in found]
        return ", ".join(names)

    @app.get("/slow")
    def slow():
        sql = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 3000000) SELECT count(*) FROM n"
        return str(db.session.scalar(text(sql)))

    return app
"""


class Development(Frontend):
    """A command of a developer's, by its name in the directory of the interpreter, in a directory of its own."""

    def __init__(self, directory: Path, *command: str, **env: str) -> None:
        super().__init__(command, python=BIN / command[0], cwd=directory, env=env)
        del self.command[1]
        for name in ("PYTHONPATH", "NO_COLOR", "FLASK_DEBUG"):
            if name not in env:
                self.env.pop(name, None)

    def page(self, path: str = "/") -> requests.Response:
        return requests.get(self.url + path, timeout=30)

    def wait_for_output(self, text: str) -> None:
        wait_until(lambda: text in self.output(), f"{text} in {self.output()}")

    def wait_for(self, text: str) -> str:
        """The first page with this text."""
        wait_until(lambda: text in self.page().text, f"{text}; {self.output()}")
        return self.page().text


class Terminal:
    """A process with a terminal of its own, which is killed at the end; ``seen`` is what it has shown there."""

    def __init__(self, command: list[str], env: dict[str, str], directory: Path) -> None:
        self.seen = bytearray()
        self.pid, self._descriptor = pty.fork()
        if self.pid == 0:
            os.chdir(directory)
            os.execve(command[0], command, env)
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        # An error means that no process has the terminal any more.
        with suppress(OSError):
            while True:
                self.seen.extend(os.read(self._descriptor, 10_000))

    def enter(self, text: str) -> None:
        """Type a line."""
        os.write(self._descriptor, f"{text}\n".encode())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        self._reader.join()
        os.close(self._descriptor)
