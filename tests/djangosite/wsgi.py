"""``app``: the site as a WSGI application, static files included."""

from __future__ import annotations

import os

from django.contrib.staticfiles.handlers import StaticFilesHandler
from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.djangosite.settings")

app = StaticFilesHandler(get_wsgi_application())
