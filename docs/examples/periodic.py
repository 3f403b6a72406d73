"""A Flask application under `serve`, with a `PeriodicCallback` on the same loop.

Run ``python docs/examples/periodic.py 8000``, then open http://127.0.0.1:8000/: the number grows ten times a second,
even while every thread is busy.
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
    """Count; functions on the loop must not block."""
    global ticks
    ticks += 1


if __name__ == "__main__":
    # `PeriodicCallback.start` uses the loop on which it is called, which must be the loop that serves.
    sys.exit(serve(app, threads=4, port=int(sys.argv[1]), on_start=PeriodicCallback(tick, 100).start))
