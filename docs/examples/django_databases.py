"""A Django project with two databases: orders are in MySQL, a router sends reports to PostgreSQL.

Say where they are with ``MYSQL_HOST``, ``MYSQL_USER``, ``MYSQL_PASSWORD``, ``MYSQL_DATABASE`` and libpq's variables,
then run ``python docs/examples/django_databases.py 8000``. Open http://127.0.0.1:8000/reports/60 and close it again:
the query disappears from ``pg_stat_activity``, and there is no new report. Meanwhile, http://127.0.0.1:8000/orders
answers at once.
"""

from __future__ import annotations

import os
import sys

import django
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.db import connections, models, router, transaction
from django.http import HttpRequest, HttpResponse
from django.urls import path

from threadbridge import serve

settings.configure(
    ALLOWED_HOSTS=["127.0.0.1"],
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.mysql",
            "HOST": os.environ["MYSQL_HOST"],
            "USER": os.environ["MYSQL_USER"],
            "PASSWORD": os.environ["MYSQL_PASSWORD"],
            "NAME": os.environ["MYSQL_DATABASE"],
        },
        "reports": {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": os.environ["PGDATABASE"],
            # Requests wait for one of these ten connections. Without a pool, Django makes one for each thread.
            "OPTIONS": {"pool": {"min_size": 1, "max_size": 10}},
        },
    },
    DATABASE_ROUTERS=[f"{__name__}.ReportsRouter"],
    ROOT_URLCONF=__name__,
)
django.setup()


class ReportsRouter:
    """Sends the models of the application ``reports`` to the database of that name."""

    def db_for_read(self, model: type[models.Model], **hints: object) -> str | None:
        return "reports" if model._meta.app_label == "reports" else None

    db_for_write = db_for_read


class Order(models.Model):
    created = models.DateTimeField(auto_now_add=True)

    class Meta:
        app_label = "shop"


class Report(models.Model):
    orders = models.IntegerField()

    class Meta:
        app_label = "reports"


def orders(request: HttpRequest) -> HttpResponse:
    """Add an order."""
    Order.objects.create()
    return HttpResponse(f"{Order.objects.count()} orders\n")


def report(request: HttpRequest, seconds: int) -> HttpResponse:
    """Add a report, which takes some time. If the client leaves, the transaction is rolled back."""
    with transaction.atomic(using="reports"):
        made = Report.objects.create(orders=Order.objects.count())
        with connections["reports"].cursor() as cursor:
            cursor.execute("SELECT pg_sleep(%s)", [seconds])
    return HttpResponse(f"report {made.pk}: {made.orders} orders\n")


urlpatterns = [path("orders", orders), path("reports/<int:seconds>", report)]
application = get_wsgi_application()


def make_tables() -> None:
    """A real project has migrations for this."""
    for model in (Order, Report):
        connection = connections[router.db_for_write(model)]
        if model._meta.db_table not in connection.introspection.table_names():
            with connection.schema_editor() as editor:
                editor.create_model(model)
        connection.close()


if __name__ == "__main__":
    make_tables()
    sys.exit(serve(application, pool="django", threads=10, port=int(sys.argv[1])))
