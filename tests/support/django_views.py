"""The site of Django's tests: views that write to the database, for requests that may be cancelled."""

from __future__ import annotations

from django.db import connections, transaction
from django.db.models import F
from django.http import HttpRequest, HttpResponse
from django.urls import path

from tests.support.django_models import Account, Note


def transfer(request: HttpRequest, source: int, target: int) -> HttpResponse:
    """One note and two accounts, or nothing."""
    with transaction.atomic():
        list(Account.objects.select_for_update().filter(pk__in=[source, target]).order_by("pk"))
        Note.objects.create(text=f"{source} {target}")
        Account.objects.filter(pk=source).update(amount=F("amount") - 1)
        Account.objects.filter(pk=target).update(amount=F("amount") + 1)
    return HttpResponse("done")


def query(request: HttpRequest, alias: str) -> HttpResponse:
    """The statement in the query string."""
    with connections[alias].cursor() as cursor:
        cursor.execute(request.GET["sql"])
        return HttpResponse(str(cursor.fetchone()))


urlpatterns = [path("transfer/<int:source>/<int:target>", transfer), path("query/<str:alias>", query)]
