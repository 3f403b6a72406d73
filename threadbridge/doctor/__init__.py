"""``--check``: finds what will not work, or not well, and says what to do about it."""
