"""The worker side's connections: which request holds which, and how its statements are stopped."""
