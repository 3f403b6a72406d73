"""A Flask application under `serve`, with a `PeriodicCallback` on the same loop.

``python docs/examples/periodic.py 8000``, then open http://127.0.0.1:8000/: the number grows ten times a second, also
while every thread is busy.
"""

from __future__ import annotations

import sys

from flask import Flask
from tornado.ioloop import PeriodicCallback

from threadbridge import serve

app = Flask(__name__)
ticks = 0


@app.get("/")
def page() -> str:
    return f"{ticks} ticks"


def tick() -> None:
    """Count; what runs on the loop must not block."""
    global ticks
    ticks += 1


if __name__ == "__main__":
    # `start` takes the loop on which it is called, so it must be called on the loop that serves.
    sys.exit(serve(app, threads=4, port=int(sys.argv[1]), on_start=PeriodicCallback(tick, 100).start))
