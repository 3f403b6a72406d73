"""The life of a process that serves, and of the one that supervises several: start, logs, signals, end."""
