"""The sockets that listen: opened by a process, or inherited from its supervisor."""
