"""What Django knows of this package."""

from django.apps import AppConfig


class ThreadbridgeConfig(AppConfig):  # type: ignore[misc]
    """Named so that no application called "django" is in the way."""

    name = "threadbridge.django"
    label = "threadbridge"
