"""Listening sockets, opened by a process or inherited from its supervisor."""
