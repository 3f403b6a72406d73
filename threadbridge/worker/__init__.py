"""The call of the WSGI application (PEP 3333). Worker side."""
