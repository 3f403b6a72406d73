"""A Django application over the MySQL database that the ``MYSQL_*`` variables name, with connections that are kept."""

from __future__ import annotations

import os
from pathlib import Path

from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.db import connection
from django.http import HttpResponse
from django.urls import path

from benchmarks.stacks.queries import QUERIES

settings.configure(
    SECRET_KEY="not secret: nothing is signed",
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF=__name__,
    LOGGING_CONFIG=None,
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.mysql",
            "NAME": os.environ["MYSQL_DATABASE"],
            "USER": os.environ["MYSQL_USER"],
            "PASSWORD": Path(os.environ["MYSQL_PASSWORD_FILE"]).read_text().strip(),
            "HOST": os.environ["MYSQL_UNIX_SOCKET"],
            "CONN_MAX_AGE": None,
        }
    },
)
queries = QUERIES["mysql"]


def run(sql: str) -> HttpResponse:
    with connection.cursor() as cursor:
        cursor.execute(sql)
        return HttpResponse(str(cursor.fetchone()[0]))


urlpatterns = [
    path("started", lambda request: HttpResponse("started\n")),
    path("short", lambda request: run(queries.short)),
    path("long", lambda request: run(queries.long)),
    path("blocked", lambda request: run(queries.blocked)),
]
app = get_wsgi_application()
