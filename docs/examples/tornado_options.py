"""The program in Tornado's documentation of `WSGIContainer`, with one changed line: the one that uses `Bridge`.

Run ``python docs/examples/tornado_options.py --port=8000 --logging=warning --log_file_prefix=site.log``: all options of
`tornado.options` and `tornado.log` work as before. Requests no longer wait for each other: each runs in a thread.
"""

from __future__ import annotations

import tornado.httpserver
import tornado.options
from flask import Flask, request
from tornado.ioloop import IOLoop
from tornado.options import define, options

from threadbridge import Bridge

define("port", default=8888, help="run on the given port", type=int)

app = Flask(__name__)


@app.get("/")
def page() -> str:
    return f"Hello {request.remote_addr}, by {request.scheme}"


def main() -> None:
    """Serve until the process is told to end."""
    tornado.options.parse_command_line()
    # Before: HTTPServer(WSGIContainer(app), xheaders=True). With a PooledDB, give pool=db.pool instead of threads=10.
    http_server = tornado.httpserver.HTTPServer(Bridge(app, threads=10), xheaders=True)
    http_server.listen(options.port)
    IOLoop.current().start()


if __name__ == "__main__":
    main()
