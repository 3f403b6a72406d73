"""A Flask application on SQLAlchemy, over the database that ``DATABASE_URL`` names: ten connections."""

from __future__ import annotations

import os
from typing import Any

import sqlalchemy
from flask import Flask, request
from flask_sqlalchemy import SQLAlchemy

from benchmarks import THREADS
from benchmarks.stacks.flask_routes import add_routes
from benchmarks.stacks.queries import QUERIES

app = Flask(__name__)
app.config["SQLALCHEMY_DATABASE_URI"] = os.environ["DATABASE_URL"]
app.config["SQLALCHEMY_ENGINE_OPTIONS"] = {"pool_size": THREADS, "max_overflow": 0}
db = SQLAlchemy(app)


class Word(db.Model):  # type: ignore[name-defined,misc]
    """What `benchmarks.compare` reads."""

    __tablename__ = "words"

    id = db.Column(db.Integer, primary_key=True)
    word = db.Column(db.String(20), nullable=False)


@app.get("/row")
def row() -> str:
    return str(db.session.get_one(Word, int(request.args["id"])).word)


@app.get("/query")
def query() -> str:
    return str(db.session.execute(sqlalchemy.text("SELECT SLEEP(:seconds)"), dict(request.args)).scalar_one())


def run(sql: str) -> str:
    row: Any = db.session.execute(sqlalchemy.text(sql)).one()
    return str(row[0])


add_routes(app, QUERIES[sqlalchemy.make_url(os.environ["DATABASE_URL"]).get_backend_name()], run)
