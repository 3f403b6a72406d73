"""A Flask application whose reports read from a replica. It knows only the engine of the primary.

Say where the two servers are, as SQLAlchemy writes it, and run this in the directory of this file:

    export PRIMARY=mysql+mysqldb://shop@db1/shop REPLICA=mysql+mysqldb://shop@db2/shop
    python -m threadbridge flask_replica:app --lane='reports:/reports/*:4:flask_replica:replica'

Add orders with ``curl -d '' -c jar -b jar http://127.0.0.1:8000/orders`` and look at ``curl -c jar -b jar
http://127.0.0.1:8000/reports/orders``: it says which server has counted, and never misses an order of yours.
"""

from __future__ import annotations

import os

import sqlalchemy
from flask import Flask

engine, replica = (
    sqlalchemy.create_engine(os.environ[name], pool_size=4, max_overflow=0, pool_pre_ping=True)
    for name in ("PRIMARY", "REPLICA")
)
app = Flask(__name__)


def make_tables() -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE IF NOT EXISTS shop_orders (id INT AUTO_INCREMENT PRIMARY KEY)")


make_tables()


@app.post("/orders")
def add_order() -> str:
    with engine.begin() as connection:
        connection.exec_driver_sql("INSERT INTO shop_orders VALUES ()")
    return "added\n"


@app.get("/reports/orders")
def count_orders() -> str:
    with engine.connect() as connection:
        row = connection.exec_driver_sql("SELECT COUNT(*), @@server_id FROM shop_orders").one()
    return f"{row[0]} orders, counted by server {row[1]}\n"
