"""The sales reports: one page, and results from MySQL by request parameters.

``app`` is the Flask application and ``db`` its database. Environment variables configure them: ``database``
explains those of the connections; ``MYAPPLICATION_DIAGNOSTICS=1`` adds the report ``wait``.
"""

from .database import db
from .views import app

__all__ = ["app", "db"]
