#!/bin/sh
# Sets up what the tests need, then runs them, several files at a time; those that fail once more, alone; and at the end
# those that need the processors for themselves. With arguments, it runs pytest once, with these:
# scripts/test.sh tests/application/test_page.py -k search
# Where CI is set, the tests run in random order; the first lines of the output name the seed that repeats it.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd -P)
"$root/scripts/setup.sh" test
cd "$root"
# The tests start hundreds of interpreters, and each worker of pytest rewrites all test files: keep the bytecode.
unset PYTHONDONTWRITEBYTECODE
[ $# -eq 0 ] || exec .venv/bin/python -m pytest "$@"
status=0
random=${CI:+"-p randomly"}
# shellcheck disable=SC2086  # two words, or none
.venv/bin/python -m pytest $random --numprocesses=5 --dist=loadfile --no-loadscope-reorder -m 'not alone' || status=$?
if [ $status -eq 1 ]; then
    # Two processors may be too few for what several tests wait for at the same time. What fails twice has failed.
    echo "Tests that failed among others run once more, alone:"
    status=0
    .venv/bin/python -m pytest --last-failed --last-failed-no-failures=none -m 'not alone' || status=$?
fi
# shellcheck disable=SC2046,SC2086  # also one word for each file
.venv/bin/python -m pytest $random -m alone $(grep -rl --include='test_*.py' pytest.mark.alone tests) || status=$?
exit $status
