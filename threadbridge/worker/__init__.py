"""The worker side: the call of the WSGI application (PEP 3333)."""
