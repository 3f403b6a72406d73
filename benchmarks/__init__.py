"""Measurements against other servers: `benchmarks.compare` is the command, and `benchmarks.hazards` a part of it."""

# As many threads has each server, and as many connections the application's pool.
THREADS = 10
MEGABYTE = 1024 * 1024
