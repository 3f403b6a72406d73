#!/bin/sh
# A fleet in a box: an entry proxy, three frontends, a database proxy and three Galera nodes on one Linux machine, each in a
# network namespace of its own. Needs root.
set -eu

usage() {
    cat <<'END'
usage: scripts/fleet.sh up               set up what is missing, build the fleet, print its parts and addresses
       scripts/fleet.sh status           show the parts; the exit status is 3 if one does not serve
       scripts/fleet.sh load             send pages, queries, slow reports and orders for 30 s; print rates, times and
                                         failures, and which orders were lost or doubled: then the exit status is 1.
                                         `load --seconds 300` runs for longer
       scripts/fleet.sh break            list what can be broken
       scripts/fleet.sh break FAULT PART break a part, such as `break kill db1` or `break unplug web2`
       scripts/fleet.sh mend [PART...]   mend these parts, or all
       scripts/fleet.sh restart [PART...] restart these frontends, or all, one after the other; no request is lost
       scripts/fleet.sh greedy           measure what polite clients get beside a greedy one, with one to three frontends
       scripts/fleet.sh scale            measure what grows with the number of hosts, and compute it for a thousand
       scripts/fleet.sh down             take everything away
       scripts/fleet.sh help             print this text

THREADBRIDGE_* variables set what you like for frontends that are started: THREADBRIDGE_QUEUE=60 scripts/fleet.sh restart
END
}

case ${1-} in
up | status | load | break | mend | restart | greedy | scale | down) ;;
help | --help | -h)
    usage
    exit
    ;;
*)
    usage >&2
    exit 2
    ;;
esac
if [ "$(id -u)" -ne 0 ]; then
    echo "fleet.sh: network namespaces need root: run it as root, such as: sudo scripts/fleet.sh $*" >&2
    exit 1
fi
cd "$(dirname "$0")/.."
[ "$1" != up ] || scripts/setup.sh fleet
[ -x .venv/bin/python ] || {
    echo "fleet.sh: nothing is set up yet; run scripts/fleet.sh up first" >&2
    exit 1
}
PATH=$PATH:/usr/sbin:/sbin exec .venv/bin/python -m benchmarks.fleet "$@"
