#!/bin/sh
# Sets up what the tests need, then runs them, several files at a time, and at the end those that need the processors for
# themselves. With arguments, it runs pytest once, with these: scripts/test.sh tests/application/test_page.py -k search
set -eu
root=$(cd "$(dirname "$0")/.." && pwd -P)
"$root/scripts/setup.sh" test
cd "$root"
[ $# -eq 0 ] || exec .venv/bin/python -m pytest "$@"
status=0
.venv/bin/python -m pytest --numprocesses=3 --dist=loadfile --no-loadscope-reorder -m 'not alone' || status=$?
.venv/bin/python -m pytest -m alone || status=$?
exit $status
