"""The admin's pages for documents."""

from __future__ import annotations

from django.contrib import admin

from tests.djangosite.models import Document


class DocumentAdmin(admin.ModelAdmin):  # type: ignore[misc]  # Django publishes no type information.
    """A list that can be searched and filtered."""

    list_display = ("title", "kind", "pages", "published")
    list_filter = ("kind",)
    search_fields = ("title",)


admin.site.register(Document, DocumentAdmin)
