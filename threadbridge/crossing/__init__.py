"""Requests, lanes, and the bodies on their way between the loop and a worker. Both sides."""
