"""Applications as others write them, with different pools and nothing for threadbridge in them.

Each reads ``MYSQL_*`` variables, or the directory of its files from ``SITE_DIRECTORY``. ``/`` answers without a query,
``/query`` with the number 42 from the database, and ``/long`` after a query that computes for minutes.
"""
