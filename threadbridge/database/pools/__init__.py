"""The kinds of pools that are guarded: each has a module, and only that knows the pool's library. Worker side."""
