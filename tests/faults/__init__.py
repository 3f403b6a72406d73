"""Faults of every kind, composed at random over random load, and the promises that must hold all the same."""
