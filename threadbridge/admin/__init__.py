"""The operators' port: shows running and recent requests, stops them, and serves health and metrics. Loop side."""
