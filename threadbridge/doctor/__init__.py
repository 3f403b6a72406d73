"""``--check``: what will not work, or not well, and what to do about it."""
