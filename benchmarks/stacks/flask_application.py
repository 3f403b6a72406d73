"""A Flask application on SQLAlchemy, over the database that ``DATABASE_URL`` names: ten connections."""

from __future__ import annotations

import os
from typing import Any

import sqlalchemy
from flask import Flask
from flask_sqlalchemy import SQLAlchemy

from benchmarks import THREADS
from benchmarks.stacks.flask_routes import add_routes
from benchmarks.stacks.queries import QUERIES

app = Flask(__name__)
app.config["SQLALCHEMY_DATABASE_URI"] = os.environ["DATABASE_URL"]
app.config["SQLALCHEMY_ENGINE_OPTIONS"] = {"pool_size": THREADS, "max_overflow": 0}
db = SQLAlchemy(app)


def run(sql: str) -> str:
    row: Any = db.session.execute(sqlalchemy.text(sql)).one()
    return str(row[0])


add_routes(app, QUERIES[sqlalchemy.make_url(os.environ["DATABASE_URL"]).get_backend_name()], run)
