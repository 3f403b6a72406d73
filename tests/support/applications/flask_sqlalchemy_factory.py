"""Flask-SQLAlchemy with an application factory and a second database."""

from __future__ import annotations

from typing import Any

from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import URL, text

from tests.support.applications.mysql_settings import LONG, settings

db = SQLAlchemy()


def create_app(name: str = "shop", *, reports: bool = False) -> Flask:
    """The application; with ``reports`` it has a second database."""
    given = settings()
    url = URL.create(
        "mysql",
        given["user"],
        given["password"],
        database=given["database"],
        query={"unix_socket": given["unix_socket"]},
    )
    app = Flask(name)
    app.config["SQLALCHEMY_DATABASE_URI"] = url
    app.config["SQLALCHEMY_ENGINE_OPTIONS"] = {"pool_size": 3, "max_overflow": 1}
    if reports:
        app.config["SQLALCHEMY_BINDS"] = {"reports": {"url": url, "pool_size": 2, "max_overflow": 0}}
    db.init_app(app)

    @app.teardown_appcontext
    def forbid(error: BaseException | None) -> None:
        """Fail outside a request, as an application's own function may."""
        from flask import g

        g.begun  # noqa: B018

    @app.before_request
    def begin() -> None:
        from flask import g

        g.begun = True

    @app.get("/")
    def index() -> str:
        return name

    @app.get("/query")
    def query() -> str:
        return f"{db.session.execute(text('SELECT 42')).scalar()}"

    @app.get("/long")
    def long() -> Any:
        return f"{db.session.execute(text(LONG)).scalar()}"

    @app.get("/report")
    def report() -> str:
        with db.engines["reports"].connect() as connection:
            return f"{connection.execute(text('SELECT 42')).scalar()}"

    return app
