"""Measurements against other servers; each module says how it is run."""
