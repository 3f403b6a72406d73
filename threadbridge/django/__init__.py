"""For ``INSTALLED_APPS`` of Django: adds the command ``python manage.py runbridge``, for development."""
