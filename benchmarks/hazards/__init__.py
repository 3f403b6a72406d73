"""What becomes of servers when queries are slow and clients bad: ``python -m benchmarks.hazards``."""
