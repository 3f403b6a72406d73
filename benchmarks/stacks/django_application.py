"""A Django application over the MySQL database that the ``MYSQL_*`` variables name, with connections that are kept."""

from __future__ import annotations

import os
from pathlib import Path

import django
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.db import connection, models
from django.http import HttpRequest, HttpResponse
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
# The model needs the settings.
django.setup()


class Word(models.Model):  # type: ignore[misc]
    """What `benchmarks.compare` reads."""

    word = models.CharField(max_length=20)

    class Meta:
        app_label = "benchmarks"
        db_table = "words"
        managed = False


def run(sql: str) -> HttpResponse:
    with connection.cursor() as cursor:
        cursor.execute(sql)
        return HttpResponse(str(cursor.fetchone()[0]))


def row(request: HttpRequest) -> HttpResponse:
    return HttpResponse(Word.objects.get(id=request.GET["id"]).word)


def query(request: HttpRequest) -> HttpResponse:
    with connection.cursor() as cursor:
        cursor.execute("SELECT SLEEP(%s)", (float(request.GET["seconds"]),))
        return HttpResponse(str(cursor.fetchone()[0]))


urlpatterns = [
    path("", lambda request: HttpResponse("Hello, world!\n")),
    path("row", row),
    path("query", query),
    path("started", lambda request: HttpResponse("started\n")),
    path("short", lambda request: run(queries.short)),
    path("long", lambda request: run(queries.long)),
    path("blocked", lambda request: run(queries.blocked)),
]
app = get_wsgi_application()
