"""The bridge, which Tornado calls for each request, and what watches over its requests. Loop side."""
