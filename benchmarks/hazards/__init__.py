"""What becomes of servers when queries are slow and clients bad: ``python -m benchmarks.hazards``."""

# As many threads has each server, and as many connections the application.
THREADS = 10
# Seconds after which a measurement is given up.
LIMIT = 15.0
MEGABYTE = 1024 * 1024
