"""The commands that this package adds to ``manage.py``."""
