"""Serves myapplication: ``python run.py --port=8000 --log_file_prefix=logs/app.8000.log``."""

import sys
from pathlib import Path

from threadbridge import run
from threadbridge.process.signals import hold_signals

# Before the import, so that a SIGHUP to all frontends does not end one that is still starting.
hold_signals()

from myapplication import app, db  # noqa: E402

if __name__ == "__main__":
    proxy = Path(__file__).with_name("nginx") / "proxy.conf"
    sys.exit(run(app, pool=db.pool, port=8888, xheaders=True, nginx_config=str(proxy)))
