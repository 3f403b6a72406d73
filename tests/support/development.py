"""What a developer starts in a directory: one of the commands, with a small application that uses a database."""

from __future__ import annotations

import sys
from pathlib import Path

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
