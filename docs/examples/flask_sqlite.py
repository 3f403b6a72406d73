"""Flask with SQLAlchemy on an sqlite file: a report ends when its client leaves, and leaves nothing in the file.

In this directory, serve it with ``python -m threadbridge flask_sqlite:app``; the file ``notes.db`` is made where you
do. Open http://127.0.0.1:8000/report/1000000000 and close it again: the processor is idle at once, and
http://127.0.0.1:8000/notes shows no new note. Nothing here is written for threadbridge.
"""

from __future__ import annotations

from flask import Flask
from sqlalchemy import create_engine, text

COUNT = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < :last) SELECT SUM(i) FROM n"

app = Flask(__name__)
# `timeout`: the seconds that a statement waits for another connection's lock. This wait cannot be interrupted.
engine = create_engine("sqlite:///notes.db", pool_size=5, max_overflow=0, connect_args={"timeout": 2})

with engine.begin() as connection:
    # From now on, readers and the one writer do not wait for each other.
    connection.execute(text("PRAGMA journal_mode = WAL"))
    connection.execute(text("CREATE TABLE IF NOT EXISTS notes (id INTEGER PRIMARY KEY, content TEXT NOT NULL)"))


@app.get("/notes")
def notes() -> list[str]:
    """All notes."""
    with engine.connect() as connection:
        return list(connection.scalars(text("SELECT content FROM notes ORDER BY id")))


@app.get("/report/<int:last>")
def report(last: int) -> str:
    """Note something, and compute for a while; the block commits at its end."""
    with engine.begin() as connection:
        connection.execute(text("INSERT INTO notes (content) VALUES (:content)"), {"content": f"up to {last}"})
        return f"{connection.scalar(text(COUNT), {'last': last})}\n"
