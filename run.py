"""Serves myapplication: ``python run.py --port=8000 --log_file_prefix=logs/app.8000.log``."""

import sys
from pathlib import Path

from myapplication import app, db
from threadbridge.command_line import run

if __name__ == "__main__":
    proxy = Path(__file__).with_name("nginx") / "proxy.conf"
    sys.exit(run(app, pool=db.pool, port=8888, xheaders=True, nginx_config=str(proxy)))
