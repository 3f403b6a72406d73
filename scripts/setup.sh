#!/bin/sh
# Sets up what is missing on a Debian machine: Debian packages, .venv, this project in it, and its compiled hot path. It is
# quick if nothing is missing, and announces each step.
set -eu

usage() {
    cat <<'END'
usage: scripts/setup.sh application           what the application needs, with a database server elsewhere
       scripts/setup.sh application mariadb   the same, and a MariaDB server to run on this machine
       scripts/setup.sh test                  all of this, and the tools of the tests
       scripts/setup.sh clusters              all of this, and Galera, for the tests of database clusters
       scripts/setup.sh containers            all of this except Galera, and what builds and runs images, for their tests
       scripts/setup.sh fleet                 what scripts/fleet.sh needs: the application, MariaDB, Galera, HAProxy
END
}

die() {
    echo "setup.sh: $*" >&2
    exit 1
}

has() {
    command -v "$1" >/dev/null
}

# Adds the packages to the missing ones unless the command works: software that did not come from Debian counts too.
need() {
    packages=$1
    shift
    "$@" >/dev/null 2>&1 || missing="$missing $packages"
}

python_has_headers() {
    python3 -c 'import os, sys, sysconfig
sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))'
}

python_has_venv() {
    python3 -c 'import ensurepip, venv'
}

# The MySQL driver is distributed only as source, and compiled on this machine.
need_python() {
    need "python3" has python3
    need "python3-venv" python_has_venv
    need "python3-dev" python_has_headers
    need "gcc libc6-dev" has gcc
    need "pkg-config" has pkg-config
    need "libmariadb-dev" pkg-config --exists libmariadb
}

# Debian keeps the programs of each version of the server outside PATH.
has_postgresql() {
    has initdb || ls /usr/lib/postgresql/*/bin/initdb
}

# These packages contain only the programs: mariadb-server would also start a server.
need_mariadb() {
    need "mariadb-server-core" has mariadbd
    need "mariadb-client-core" has mariadb
}

has_redis() {
    has redis-server || has valkey-server
}

need_test_tools() {
    need "nginx" has nginx
    need "libnginx-mod-stream" test -e /usr/lib/nginx/modules/ngx_stream_module.so
    need "chromium fonts-dejavu-core" has chromium
    need "chromium-driver" has chromedriver
    need "postgresql" has_postgresql
    need "pgbouncer" has pgbouncer
    need "haproxy" has haproxy
    need "redis-server" has_redis
    need "curl" has curl
    need "wrk" has wrk
    need "shellcheck" has shellcheck
    need "systemd" has systemd-analyze
    need "logrotate" has logrotate
}

need_cluster_tools() {
    need "galera-4" test -e /usr/lib/galera/libgalera_smm.so
    need "rsync" has rsync
    need "lsof" has lsof
    need "iproute2" has ip
}

need_container_tools() {
    need "debootstrap" has debootstrap
    need "buildah" has buildah
    need "podman" has podman
    need "runc" has runc
}

# Takes only the files of Debian's package $2 to $1/, since installing it would also start a server.
fetch_files() {
    has apt-get || die "the files of Debian's package $2 are missing: copy them to $1/"
    echo "Taking the files of Debian's package $2"
    rm -rf "$1"
    mkdir -p "$1"
    (
        cd "$1"
        # The package lists may be old, or missing.
        apt-get -q download "$2" || { apt-get update && apt-get -q download "$2"; }
        dpkg-deb --extract "$2"_*.deb .
        rm "$2"_*.deb
    )
}

# By these, a node of a cluster gets its data from another.
fetch_sst_scripts() {
    [ -e build/galera/usr/bin/wsrep_sst_rsync ] || fetch_files build/galera mariadb-server
}

fetch_prometheus() {
    has prometheus || [ -e build/prometheus/usr/bin/prometheus ] || fetch_files build/prometheus prometheus
}

install_packages() {
    # shellcheck disable=SC2086  # one word per package
    set -- $missing
    has apt-get || die "these Debian packages, or their equivalents on this system, are missing: $*"
    [ "$(id -u)" -eq 0 ] || die "Debian packages are missing. Install them, then try again:
    sudo apt-get install --no-install-recommends $*"
    echo "Installing Debian packages: $*"
    # Close the lock: a service that a package starts would hold it forever.
    (
        exec 9<&-
        export DEBIAN_FRONTEND=noninteractive
        apt-get update
        apt-get install --yes --no-install-recommends "$@"
        case " $* " in
        *" nginx "*)
            echo "Stopping the nginx that Debian has just started on port 80: the tests run their own"
            update-rc.d nginx disable
            invoke-rc.d nginx stop
            ;;
        esac
        for service in pgbouncer haproxy redis-server; do
            case " $* " in
            *" $service "*)
                echo "Stopping the service $service that Debian has just started: the tests run their own"
                update-rc.d $service disable
                invoke-rc.d $service stop
                ;;
            esac
        done
        case " $* " in
        *" postgresql "*)
            echo "Stopping the PostgreSQL server that Debian has just started: the tests run their own"
            update-rc.d postgresql disable
            invoke-rc.d postgresql stop
            ;;
        esac
    )
}

install_project() {
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        die "Python 3.11 or newer is needed, and python3 is $(python3 -V 2>&1)"
    if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
        echo "Creating the virtual environment $root/.venv"
        python3 -m venv --clear .venv
    fi
    echo "Installing the project and its dependencies into $root/.venv"
    export PIP_CONSTRAINT="$root/constraints.txt" PIP_BUILD_CONSTRAINT="$root/constraints.txt"
    export PIP_DISABLE_PIP_VERSION_CHECK=1
    .venv/bin/python -m pip install pip
    .venv/bin/python -m pip install --editable ".[$extras]"
    for name in $(echo $extras | tr , ' '); do
        installed >".venv/installed-$name"
    done
    # It may have been compiled with the types of other versions.
    rm -rf build/compiled
}

# Never fails: the application also runs uncompiled, only slower.
compile_hot_path() {
    compiled=$(.venv/bin/python -IS threadbridge/compiled.py)
    log=$compiled.log
    [ ! -d "$compiled" ] || return 0
    if [ -e "$log" ]; then
        echo "The hot path could not be compiled, see $log; remove that file to try again" >&2
        return 0
    fi
    echo "Compiling the hot path (about 30 s)"
    rm -rf build/compiled
    mkdir -p build/compiled
    if THREADBRIDGE_COMPILE=1 .venv/bin/python setup.py build_ext --build-lib "$compiled.new" >"$log" 2>&1; then
        # A process that starts meanwhile finds all of it or nothing.
        mv "$compiled.new" "$compiled"
        rm "$log"
    else
        echo "The hot path cannot be compiled, see $log; the application runs uncompiled, which is slower" >&2
    fi
}

# What the virtual environment was made from. It contains its own path, so a copy of the directory needs a new one.
installed() {
    echo "$root"
    .venv/bin/python -V
    cat setup.cfg constraints.txt
}

extras=compile,fast,metrics,application
case $* in
application | "application mariadb" | fleet) ;;
test | clusters | containers)
    extras=compile,fast,metrics,application,test
    ;;
*)
    usage >&2
    exit 2
    ;;
esac

PATH=$PATH:/usr/sbin:/sbin
root=$(cd "$(dirname "$0")/.." && pwd -P)
cd "$root"
# Only one at a time may work. The script itself serves as the lock.
exec 9<scripts/setup.sh
flock 9

up_to_date=yes
installed 2>/dev/null | cmp -s - ".venv/installed-${extras##*,}" || up_to_date=no
missing=
[ $up_to_date = yes ] || need_python
case $* in
"application mariadb" | fleet) need_mariadb ;;
test | clusters | containers)
    need_mariadb
    need_test_tools
    ;;
esac
case $* in
clusters) need_cluster_tools ;;
containers) need_container_tools ;;
fleet)
    need_cluster_tools
    need "haproxy" has haproxy
    ;;
esac
[ -z "$missing" ] || install_packages
[ $up_to_date = yes ] || install_project
compile_hot_path
case $* in
test | clusters) fetch_prometheus ;;
esac
case $* in
clusters | fleet) fetch_sst_scripts ;;
esac
