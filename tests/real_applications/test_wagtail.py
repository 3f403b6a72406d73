"""Wagtail and Django's admin: uploads, static files, forms. Their usual server is gunicorn."""

from __future__ import annotations

import zlib
from pathlib import Path

from tests.real_applications.site import Environment, Visitor, assert_same, hidden_field, needs_applications

USER = {"username": "ann", "password": "a password"}
CREATE_USER = """
from django.contrib.auth import get_user_model
get_user_model().objects.create_superuser("ann", "ann@example.com", "a password")
"""
# Files of the project's own, as in development: Wagtail leaves them to another server otherwise.
SETTINGS = """
from .dev import *
SECRET_KEY = "not a secret"
ALLOWED_HOSTS = ["127.0.0.1"]
STORAGES["staticfiles"] = {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"}
"""


def png(size: int) -> bytes:
    """A grey picture of so many rows and columns."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    head = size.to_bytes(4, "big") * 2 + bytes([8, 0, 0, 0, 0])
    rows = zlib.compress(b"".join(b"\0" + bytes([row % 256]) * size for row in range(size)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def visit(site: Visitor) -> None:
    assert "Welcome" in site.get("/")
    # Django's admin.
    site.ask("GET", "/django-admin/", status=302)
    token = hidden_field(site.get("/django-admin/login/"), "csrfmiddlewaretoken")
    site.ask("POST", "/django-admin/login/", data=USER, status=403)
    form = {**USER, "csrfmiddlewaretoken": token, "next": "/django-admin/"}
    site.ask("POST", "/django-admin/login/", data=form, status=302)
    assert "Site administration" in site.get("/django-admin/")
    token = hidden_field(site.get("/django-admin/auth/group/add/"), "csrfmiddlewaretoken")
    group = {"csrfmiddlewaretoken": token, "name": "Éditeurs", "_save": "Save"}
    site.ask("POST", "/django-admin/auth/group/add/", data=group, status=302)
    assert "Éditeurs" in site.get("/django-admin/auth/group/")
    site.get("/static/admin/css/base.css")
    # Wagtail's own.
    site.get("/admin/")
    token = hidden_field(site.get("/admin/images/add/"), "csrfmiddlewaretoken")
    picture = {"files": {"file": ("grey.png", png(2000), "image/png")}}
    details = {"csrfmiddlewaretoken": token, "title": "Grey", "collection": "1"}
    site.ask("POST", "/admin/images/add/", data=details, status=302, **picture)
    assert "Grey" in site.get("/admin/images/")
    document = {"files": {"file": ("large.txt", b"line\n" * 1_000_000, "text/plain")}}
    site.ask("POST", "/admin/documents/add/", data={**details, "title": "Large"}, status=302, **document)
    assert site.get("/documents/1/large.txt") == "line\n" * 1_000_000
    site.ask("GET", "/admin/pages/99/", status=404)
    site.get_all_at_once("/django-admin/auth/group/", "/admin/images/", "/static/admin/css/base.css", "/")


@needs_applications
def test_wagtail_and_the_admin_of_django(tmp_path: Path) -> None:
    environment = Environment("wagtail", "wagtail", "gunicorn")
    data = tmp_path / "data"
    data.mkdir()
    environment.run("-m", "wagtail.bin.wagtail", "start", "mysite", ".", cwd=data)
    (data / "mysite" / "settings" / "tested.py").write_text(SETTINGS)
    settings = {"DJANGO_SETTINGS_MODULE": "mysite.settings.tested"}
    environment.run("manage.py", "migrate", cwd=data, env=settings)
    environment.run("manage.py", "shell", "-c", CREATE_USER, cwd=data, env=settings)
    assert_same(
        visit,
        environment,
        data,
        ("-m", "threadbridge", "mysite.wsgi:application", "--port={port}"),
        ("-m", "gunicorn", "mysite.wsgi:application", "--threads=10", "--bind=127.0.0.1:{port}"),
        env=settings,
        varying=[
            r"\b[A-Za-z0-9]{64}\b",
            r"\b[A-Za-z0-9]{32}\b",
            r"\d+ minutes?",
            r"[0-2]?\d:\d\d(:\d\d)?( [ap]\.m\.)?",
        ],
    )
