"""Applications on SQLAlchemy and Django, with nothing in them that was written for threadbridge."""
