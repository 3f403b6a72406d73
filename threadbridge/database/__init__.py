"""Which request holds which connection, and how its statements are stopped. Worker side."""
