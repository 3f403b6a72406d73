"""Serves myapplication: ``python run.py --port=8000 --log_file_prefix=logs/app.8000.log``."""

import sys

from myapplication import app, db
from threadbridge.command_line import run

if __name__ == "__main__":
    sys.exit(run(app, pool=db.pool, port=8888, xheaders=True))
