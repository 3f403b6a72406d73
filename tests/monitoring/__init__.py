"""Prometheus watches frontends with the documented alerts and dashboard: on demand, with MONITORING=1."""
