"""What the site keeps."""

from __future__ import annotations

from django.db import models


class Document(models.Model):  # type: ignore[misc]  # Django publishes no type information.
    """A file with a few facts about it."""

    title = models.CharField(max_length=100)
    kind = models.CharField(max_length=10, choices=[("report", "Report"), ("letter", "Letter")])
    pages = models.PositiveIntegerField()
    published = models.DateField(null=True, blank=True)
    file = models.FileField(upload_to="documents", blank=True)

    def __str__(self) -> str:
        return str(self.title)
