"""Flask-SQLAlchemy with an application factory: queries stop when their client leaves, and nothing is committed.

Say where the database is with SQLAlchemy's URL, and serve the application in this directory:

    DATABASE_URL=mysql://user:password@127.0.0.1/shop python -m threadbridge 'flask_sqlalchemy_factory:create_app()'

The log begins with ``pool: SQLAlchemy engine …, 10 connections: 10 threads``. Open http://127.0.0.1:8000/orders/60 and
close it again: the query disappears from ``SHOW PROCESSLIST``, and no order is added. Nothing here is written for
threadbridge.
"""

from __future__ import annotations

import os

from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import String, func, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders_of_example"

    id: Mapped[int] = mapped_column(primary_key=True)
    item: Mapped[str] = mapped_column(String(100))


db = SQLAlchemy(model_class=Base)


def create_app() -> Flask:
    """The application, and the tables if they are missing."""
    app = Flask(__name__)
    app.config["SQLALCHEMY_DATABASE_URI"] = os.environ["DATABASE_URL"]
    # No overflow: SQLAlchemy would close these connections after each use, and make new ones.
    app.config["SQLALCHEMY_ENGINE_OPTIONS"] = {"pool_size": 10, "max_overflow": 0, "pool_recycle": 3600}
    db.init_app(app)
    with app.app_context():
        Base.metadata.create_all(db.engine)

    @app.get("/orders")
    def orders() -> list[str]:
        return list(db.session.scalars(select(Order.item).order_by(Order.id)))

    @app.get("/orders/<int:seconds>")
    def slow_order(seconds: int) -> str:
        db.session.add(Order(item="coffee"))
        db.session.flush()
        db.session.execute(select(func.sleep(seconds)))
        db.session.commit()
        return "ordered\n"

    return app
