"""Serves myapplication: ``python run.py --port=8000 --log_file_prefix=logs/app.8000.log``."""

import sys

from myapplication import app, db
from threadbridge import Lane
from threadbridge.command_line import run

# Neither needs the database: with threads of their own they are answered while queries hold all the others.
LANES = (Lane("page", "/", threads=1), Lane("static", "/static/*", threads=1))

if __name__ == "__main__":
    sys.exit(run(app, pool=db.pool, lanes=LANES, port=8888, xheaders=True))
