"""Short queries among long ones on a real database: ``python -m benchmarks.mixed``."""
