"""What the frontends of the fleet serve: myapplication, and orders that are written in two statements."""

from __future__ import annotations

from contextlib import closing

from flask import request

from myapplication import app, db

__all__ = ["app", "db"]


@app.post("/orders/")
def order() -> str:
    """Write both halves of an order in one transaction."""
    load_id, number = request.form["load"], request.form["number"]
    with closing(db.pool.connection()) as connection, closing(connection.cursor()) as cursor:
        for half in (1, 2):
            cursor.execute("INSERT INTO written (load_id, number, half) VALUES (%s, %s, %s)", (load_id, number, half))
        connection.commit()
    return "written"
