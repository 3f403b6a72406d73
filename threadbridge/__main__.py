"""``python -m threadbridge MODULE:APP`` serves any WSGI application."""

import sys

from threadbridge.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
