"""A Django project whose reports read from a replica, as its router decides.

Say where the two servers are with ``MYSQL_HOST``, ``REPLICA_HOST``, ``MYSQL_USER``, ``MYSQL_PASSWORD`` and
``MYSQL_DATABASE``, then run ``python docs/examples/django_replica.py 8000``. Add orders with ``curl -d '' -c jar -b jar
http://127.0.0.1:8000/orders`` and look at ``curl -c jar -b jar http://127.0.0.1:8000/reports/orders``: it says which
database has counted, and never misses an order of yours.
"""

from __future__ import annotations

import os
import sys

import django
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.db import connection, models
from django.http import HttpRequest, HttpResponse
from django.urls import path

from threadbridge import Lane, on_replica, serve


def database(host: str) -> dict[str, object]:
    """The same user, password and database on each server."""
    return {
        "ENGINE": "django.db.backends.mysql",
        "HOST": host,
        "USER": os.environ["MYSQL_USER"],
        "PASSWORD": os.environ["MYSQL_PASSWORD"],
        "NAME": os.environ["MYSQL_DATABASE"],
        "CONN_MAX_AGE": 600,
        "CONN_HEALTH_CHECKS": True,
    }


settings.configure(
    ALLOWED_HOSTS=["127.0.0.1"],
    DATABASES={"default": database(os.environ["MYSQL_HOST"]), "replica": database(os.environ["REPLICA_HOST"])},
    DATABASE_ROUTERS=[f"{__name__}.ReplicaRouter"],
    ROOT_URLCONF=__name__,
)
django.setup()


class ReplicaRouter:
    """Reads from the replica when the server says so; all else is done on the primary."""

    def db_for_read(self, model: type[models.Model], **hints: object) -> str | None:
        return "replica" if on_replica() else None

    def db_for_write(self, model: type[models.Model], **hints: object) -> str:
        return "default"

    def allow_relation(self, *objects: models.Model, **hints: object) -> bool:
        return True

    def allow_migrate(self, db: str, app_label: str, **hints: object) -> bool:
        return db == "default"


class Order(models.Model):
    created = models.DateTimeField(auto_now_add=True)

    class Meta:
        app_label = "shop"


def orders(request: HttpRequest) -> HttpResponse:
    """Add an order."""
    Order.objects.create()
    return HttpResponse("added\n")


def report(request: HttpRequest) -> HttpResponse:
    """Count the orders."""
    counted = Order.objects.all()
    return HttpResponse(f"{counted.count()} orders, counted by {counted.db}\n")


urlpatterns = [path("orders", orders), path("reports/orders", report)]
application = get_wsgi_application()


def make_tables() -> None:
    """A real project has migrations for this."""
    if Order._meta.db_table not in connection.introspection.table_names():
        with connection.schema_editor() as editor:
            editor.create_model(Order)
    connection.close()


if __name__ == "__main__":
    make_tables()
    reports = Lane("reports", "/reports/*", threads=4, pool="django:replica")
    sys.exit(serve(application, pool="django:default", threads=10, lanes=[reports], port=int(sys.argv[1])))
