#!/bin/sh
# Sets up what the tests need, then runs them. Arguments go to pytest: scripts/test.sh tests/test_page.py -k search
set -eu
root=$(cd "$(dirname "$0")/.." && pwd -P)
"$root/scripts/setup.sh" test
cd "$root"
exec .venv/bin/python -m pytest "$@"
