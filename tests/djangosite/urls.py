"""The admin, and a view for each way in which Django gives a body to the server."""

from __future__ import annotations

from collections.abc import Iterator

from django.contrib import admin
from django.http import FileResponse, HttpRequest, StreamingHttpResponse
from django.shortcuts import get_object_or_404
from django.urls import path

from tests.djangosite.models import Document


def download(request: HttpRequest, number: int) -> FileResponse:
    """A document's file; by ``wsgi.file_wrapper``."""
    return FileResponse(get_object_or_404(Document, pk=number).file.open("rb"), as_attachment=True)


def titles(request: HttpRequest) -> StreamingHttpResponse:
    """All titles, a line each, fetched from the database while they are sent."""

    def lines() -> Iterator[str]:
        for document in Document.objects.order_by("title").iterator(chunk_size=10):
            yield f"{document.title}\n"

    return StreamingHttpResponse(lines(), content_type="text/plain; charset=utf-8")


urlpatterns = [
    path("admin/", admin.site.urls),
    path("documents/<int:number>/", download),
    path("titles/", titles),
]
