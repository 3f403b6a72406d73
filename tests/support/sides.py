"""Serves a mixed load and prints each function of the package that ran on the wrong side.

A program: ``python -m tests.support.sides``. A function's side is what its docstring says, or that of its class, module
or package. ``Any thread`` and ``Either side`` allow both; private functions without a docstring are not judged.
"""

from __future__ import annotations

import ast
import contextlib
import http.client
import os
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any
from wsgiref.types import StartResponse, WSGIEnvironment

import MySQLdb
from dbutils.pooled_db import PooledDB

import threadbridge
from tests.support.databases import connect_settings
from tests.support.inprocess import BridgeThread, wait_until

PACKAGE = Path(threadbridge.__file__).parent
# What a docstring may say, and on which side the function may run then.
SIDES = {
    "Any thread": {"loop", "worker"},
    "Either side": {"loop", "worker"},
    "either side": {"loop", "worker"},
    "Both sides": {"loop", "worker"},
    "both sides": {"loop", "worker"},
    "Loop side": {"loop"},
    "loop side": {"loop"},
    "Worker side": {"worker"},
    "worker side": {"worker"},
    "worker's": {"worker"},
}


def side_said(node: ast.AST) -> set[str] | None:
    """The sides that a docstring names last, if it names one."""
    assert isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
    text = " ".join((ast.get_docstring(node) or "").split())
    found = {text.rfind(words): sides for words, sides in SIDES.items() if words in text}
    return found[max(found)] if found else None


def functions(path: Path) -> Iterator[tuple[int, set[str] | None]]:
    """For each function of a file its first line, and on which sides it may run; None if nothing says so."""
    package = side_said(ast.parse((path.parent / "__init__.py").read_text()))
    tree = ast.parse(path.read_text())

    def walk(node: ast.AST, inherited: set[str] | None) -> Iterator[tuple[int, set[str] | None]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef):
                yield from walk(child, side_said(child) or inherited)
            elif isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
                first = min([child.lineno, *(each.lineno for each in child.decorator_list)])
                yield first, (side_said(child) or inherited) if ast.get_docstring(child) else None
            else:
                yield from walk(child, inherited)

    yield from walk(tree, side_said(tree) or package)


class Watcher:
    """Counts for each function of the package on which sides it has run, but for those that may run there."""

    def __init__(self) -> None:
        self.allowed = {
            (str(path), line): sides
            for path in PACKAGE.rglob("*.py")
            for line, sides in functions(path)
            if sides is not None
        }
        self.wrong: Counter[tuple[str, str]] = Counter()
        self.seen: set[CodeType] = set()
        self.loop_threads: set[int] = set()

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        if event != "call" or not frame.f_code.co_filename.startswith(str(PACKAGE)):
            return
        sides = self.allowed.get((frame.f_code.co_filename, frame.f_code.co_firstlineno))
        name = threading.current_thread().name
        side = (
            "loop"
            if threading.get_ident() in self.loop_threads
            else "worker"
            if name.startswith("threadbridge-")
            else ""
        )
        if sides is None or not side:
            return
        self.seen.add(frame.f_code)
        if side not in sides:
            place = Path(frame.f_code.co_filename).relative_to(PACKAGE)
            self.wrong[f"{place}:{frame.f_code.co_firstlineno} {frame.f_code.co_qualname}", side] += 1


def main() -> None:
    watcher = Watcher()
    pool = PooledDB(MySQLdb, maxconnections=2, **connect_settings(dict(os.environ)))

    def application(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes] | Iterator[bytes]:
        path, body = environ["PATH_INFO"], environ["wsgi.input"].read()
        if path == "/fails":
            raise ValueError(path)
        if path.startswith("/query"):
            with contextlib.closing(pool.connection()) as connection, contextlib.closing(connection.cursor()) as cursor:
                cursor.execute("SELECT SLEEP(%s)", (20 if path == "/query/slow" else 0,))
                cursor.fetchall()
        start_response("200 OK", [("Content-Type", "text/plain")])
        return iter([b"x" * 100_000] * 20) if path == "/stream" else [body or b"page"]

    def adopt() -> None:
        watcher.loop_threads.add(threading.get_ident())
        sys.setprofile(watcher)

    threading.setprofile(watcher)
    with BridgeThread(application, pool=pool, slow_log=0.01, memory_size=200_000) as server:
        server.loop.call_soon_threadsafe(adopt)
        for _ in range(3):
            for path in ("/", "/query", "/stream", "/fails", "/missing?x=1"):
                server.request("GET", path)
                server.request("HEAD", path)
            server.request("POST", "/", b"x" * 300_000)
        connection = http.client.HTTPConnection("127.0.0.1", server.port)
        connection.request("GET", "/query/slow")
        wait_until(lambda: pool._connections == 1, "the query runs")
        connection.close()
        wait_until(lambda: pool._connections == 0, "the query is stopped")
        server.exchange(b"GET / HTTP/1.1\r\nbad\r\n\r\n")
    print(len(watcher.seen))
    for (place, side), count in sorted(watcher.wrong.items()):
        print(f"{place} ran {count} times on the {side} side")


if __name__ == "__main__":
    main()
