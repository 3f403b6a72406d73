"""What is measured: one load after the other, on servers with and without an access log."""

from __future__ import annotations

from typing import NamedTuple

from benchmarks.contenders import DJANGO, PLAIN, SQLALCHEMY, Setup
from benchmarks.wrk import Load


class Workload(NamedTuple):
    """A load that each server gets in each round.

    :param seconds: how long; the loads for which goals are set are measured longer.
    :param setup: how the servers are set up.
    :param through_nginx: whether nginx is in front of each, with connections that it keeps, as users run it.
    :param with_bound: whether servers bound to one processor are measured, too.
    """

    title: str
    load: Load
    seconds: int = 1
    setup: Setup = PLAIN
    through_nginx: bool = False
    with_bound: bool = False


HELLO = "/"
SELECT = "/row?id=500"

LOGGED = Setup(logged=True)

WORKLOADS = {
    "hello": Workload("Hello, 64 connections", Load(HELLO, 64), 2, with_bound=True),
    "select": Workload("An indexed SELECT, 32 connections", Load(SELECT, 32), 2, with_bound=True),
    "page": Workload("A page of 16 kB from a template, 32 connections", Load("/page", 32)),
    "upload": Workload("An upload of 100 kB, 32 connections", Load("/upload", 32, "POST", 100_000)),
    "download": Workload("A download of 10 MB, 8 connections", Load("/download?megabytes=10", 8)),
    "hello-1": Workload("Hello, 1 connection", Load(HELLO, 1)),
    "hello-8": Workload("Hello, 8 connections", Load(HELLO, 8)),
    "hello-512": Workload("Hello, 512 connections", Load(HELLO, 512), 2),
    "hello-new": Workload("Hello, a new connection each, 64 at once", Load(HELLO, 64, keep_alive=False)),
    "hello-logged": Workload("Hello, 64 connections, with access log", Load(HELLO, 64), 2, LOGGED),
    "select-logged": Workload("An indexed SELECT, 32 connections, with access log", Load(SELECT, 32), 2, LOGGED),
    "mix": Workload("Hello, SELECT and page in turn, 32 connections", Load(HELLO, 32, others=(SELECT, "/page")), 2),
    "hello-nginx": Workload("Hello through nginx, 64 connections", Load(HELLO, 64), 2, through_nginx=True),
    "select-nginx": Workload(
        "An indexed SELECT through nginx, 32 connections", Load(SELECT, 32), 2, through_nginx=True
    ),
    "hello-tls": Workload("Hello over TLS, 64 connections", Load(HELLO, 64), 2, Setup(tls=True)),
    "select-sqlalchemy": Workload(
        "A row by Flask-SQLAlchemy, 32 connections", Load(SELECT, 32), 2, Setup(SQLALCHEMY), with_bound=True
    ),
    "select-django": Workload("A row by Django, 32 connections", Load(SELECT, 32), 2, Setup(DJANGO), with_bound=True),
}
