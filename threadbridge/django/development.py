"""The application that ``python manage.py runbridge`` serves."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import django
from django.apps import apps
from django.conf import settings
from django.core.management import call_command
from django.core.servers.basehttp import get_internal_wsgi_application

if TYPE_CHECKING:
    from wsgiref.types import WSGIApplication


def make_application() -> WSGIApplication:
    """The project's application, as ``runserver`` makes it: checked, and with static files if ``DEBUG`` is set.

    Raises what the project does, and ``SystemCheckError``.
    """
    django.setup()
    call_command("check")
    application = get_internal_wsgi_application()
    if settings.DEBUG and apps.is_installed("django.contrib.staticfiles"):
        from django.contrib.staticfiles.handlers import StaticFilesHandler

        application = StaticFilesHandler(application)
    return cast("WSGIApplication", application)
