"""The models of the tests; `tables` makes their tables."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from django.db import connections, models


class Account(models.Model):  # type: ignore[misc]  # Django publishes no type information.
    """Money."""

    amount = models.IntegerField()

    class Meta:
        app_label = "tests"


class Note(models.Model):  # type: ignore[misc]  # As above.
    """A text, perhaps in another database."""

    text = models.CharField(max_length=100)

    class Meta:
        app_label = "tests"


@contextmanager
def tables(alias: str) -> Iterator[None]:
    """The models' tables, during the block; the schema editor makes them."""
    kinds = (Account, Note)
    with connections[alias].schema_editor() as editor:
        for kind in kinds:
            editor.create_model(kind)
    try:
        yield
    finally:
        with connections[alias].schema_editor() as editor:
            for kind in kinds:
                editor.delete_model(kind)
