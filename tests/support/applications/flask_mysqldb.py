"""A Flask application that connects for each request, and the routes of those in ``benchmarks.stacks``."""

from __future__ import annotations

import os
from contextlib import closing

from flask import Flask

from benchmarks.database import connect
from benchmarks.stacks.flask_routes import add_routes
from benchmarks.stacks.queries import QUERIES

app = Flask(__name__)


def run(sql: str) -> str:
    with closing(connect(os.environ)) as connection, closing(connection.cursor()) as cursor:
        cursor.execute(sql)
        return str(cursor.fetchone())


add_routes(app, QUERIES["mysql"], run)
