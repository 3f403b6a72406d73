"""The routes that the Flask applications have in common."""

from __future__ import annotations

from collections.abc import Callable

from flask import Flask

from benchmarks.stacks.queries import Queries


def add_routes(app: Flask, queries: Queries, run: Callable[[str], str]) -> None:
    """Add a page without a query, and one for each query, which ``run`` executes."""

    @app.get("/")
    @app.get("/started")
    def started() -> str:
        return "started\n"

    @app.get("/short")
    def short() -> str:
        return run(queries.short)

    @app.get("/long")
    def long() -> str:
        return run(queries.long)

    @app.get("/blocked")
    def blocked() -> str:
        return run(queries.blocked)
