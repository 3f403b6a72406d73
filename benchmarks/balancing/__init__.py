"""Short requests through load balancers while one of three hosts is in trouble: ``python -m benchmarks.balancing``."""
