#!/bin/sh
# Builds Python without its global lock (PEP 703, "free-threaded"), which Debian does not ship, from Debian's source
# package; and a virtual environment with the project, its compiled hot path, and what its tests can use there.
set -eu

usage() {
    cat <<'END_OF_USAGE'
usage: scripts/free_threaded.sh              free-threaded Python in build/free-threaded
       scripts/free_threaded.sh --with-lock  the same Python with the lock, in build/with-lock, to compare with

Either takes about ten minutes on two processors. Afterwards:
    build/free-threaded/venv/bin/python -m threadbridge MODULE:APP
    build/free-threaded/venv/bin/python -m pytest

PYTHON_SOURCE=FILE takes the sources from this archive, such as python.org's Python-3.15.0.tar.xz, instead of Debian.
Repeated, it only brings the virtual environment up to date.
END_OF_USAGE
}

die() {
    echo "free_threaded.sh: $*" >&2
    exit 1
}

# The packages that Python's own modules and the project's dependencies are built with.
need_libraries() {
    missing=
    for package in gcc libc6-dev make pkg-config xz-utils libssl-dev libffi-dev zlib1g-dev libbz2-dev liblzma-dev \
        libsqlite3-dev libmariadb-dev libpq-dev; do
        [ "$(dpkg-query -W -f '${db:Status-Status}' $package 2>/dev/null)" = installed ] || missing="$missing $package"
    done
    [ -n "$missing" ] || return 0
    [ "$(id -u)" -eq 0 ] || die "Debian packages are missing: apt-get install --no-install-recommends$missing"
    apt-get update
    # shellcheck disable=SC2086  # one word for each package
    DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends $missing
}

# Debian's newest source of which its mirror has the archive. apt checks its signatures; the lists are kept apart from the
# system's.
fetch_source() {
    mkdir -p "$work/apt/sources" "$work/apt/lists/partial" "$work/apt/archives/partial"
    # shellcheck disable=SC2016  # apt's own variable
    mirror=$(apt-get indextargets --format '$(SITE)' | grep -m1 '/debian$') || mirror=http://deb.debian.org/debian
    cat >"$work/apt/sources/debian.sources" <<END_OF_SOURCES
Types: deb-src
URIs: $mirror
Suites: sid testing
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
END_OF_SOURCES
    set -- -q -o Dir::Etc::SourceList=/dev/null -o Dir::Etc::SourceParts="$work/apt/sources" \
        -o Dir::State::Lists="$work/apt/lists" -o Dir::Cache="$work/apt" -o APT::Sandbox::User="$(id -un)"
    apt-get "$@" update
    for version in $(apt-cache "$@" showsrc python3.13 python3.14 python3.15 2>/dev/null |
        awk '/^Package: / { package = $2 } /^Version: / { print package "=" $2 }' | sort -Vru); do
        if (cd "$work" && apt-get "$@" source --download-only --tar-only "$version"); then
            PYTHON_SOURCE=$(ls "$work/${version%%=*}_"*.orig.tar.*)
            return
        fi
        echo "The mirror does not have $version; trying the next older one" >&2
    done
    die "the mirror $mirror has no source of Python 3.13 or newer: give an archive as PYTHON_SOURCE=FILE"
}

build_python() {
    work=$directory/work
    rm -rf "$work"
    mkdir -p "$work/source" "$work/objects"
    [ -n "${PYTHON_SOURCE-}" ] || fetch_source
    echo "Building Python from $PYTHON_SOURCE"
    tar -xf "$PYTHON_SOURCE" -C "$work/source" --strip-components=1
    (
        cd "$work/objects"
        # No profile-guided optimization, which would take an hour: both builds are the same but for the lock.
        # shellcheck disable=SC2086  # one word, or none
        "$work/source/configure" -q --prefix="$directory" $lock --with-ensurepip=install --disable-test-modules \
            OPT="-DNDEBUG -O2 -fwrapv -Wall"
        make -s -j"$(nproc)"
        make -s install
    ) >"$directory/build.log" 2>&1 || die "Python cannot be built, see $directory/build.log"
    rm -rf "$work"
}

# Not all at once: the newest of some packages that the tests use has no wheel for free-threaded Python and cannot be built
# here. Then an older one that has a wheel does, or none.
install_project() {
    [ -x "$directory/venv/bin/python" ] || "$directory/bin/python3" -m venv "$directory/venv"
    python=$directory/venv/bin/python
    export PIP_CONSTRAINT="$root/constraints.txt" PIP_DISABLE_PIP_VERSION_CHECK=1
    "$python" -m pip -q install --editable ".[metrics,application]"
    "$python" - <<'END_OF_PYTHON' |
import configparser

setup = configparser.ConfigParser()
setup.read("setup.cfg")
extras = setup["options.extras_require"]
for line in (extras["fast"] + extras["test"]).splitlines():
    if line and not line.startswith("#"):
        print(line)
END_OF_PYTHON
        while read -r requirement; do
            "$python" -m pip -q install --prefer-binary "$requirement" >"$directory/pip.log" 2>&1 ||
                env -u PIP_CONSTRAINT "$python" -m pip -q install --only-binary=:all: \
                    "$(echo "$requirement" | sed 's/\[binary,/[/')" >"$directory/pip.log" 2>&1 ||
                echo "not installed: $requirement: $(grep -m1 -i error "$directory/pip.log")"
        done
}

compile_hot_path() {
    compiled=$("$python" -IS threadbridge/compiled.py)
    [ ! -d "$compiled" ] || return 0
    if ! "$python" -c 'import mypyc.build, setuptools' 2>/dev/null; then
        echo "The hot path runs uncompiled: there is no mypyc for this Python" >&2
        return 0
    fi
    echo "Compiling the hot path"
    if THREADBRIDGE_COMPILE=1 "$python" setup.py build_ext --build-lib "$compiled.new" --build-temp "$directory/objects" \
        >"$directory/compile.log" 2>&1; then
        mv "$compiled.new" "$compiled"
    else
        echo "The hot path cannot be compiled, see $directory/compile.log: it runs uncompiled" >&2
    fi
}

root=$(cd "$(dirname "$0")/.." && pwd -P)
cd "$root"
case $* in
"")
    directory=$root/build/free-threaded
    lock=--disable-gil
    ;;
--with-lock)
    directory=$root/build/with-lock
    lock=
    ;;
*)
    usage >&2
    exit 2
    ;;
esac
mkdir -p "$directory"
need_libraries
[ -x "$directory/bin/python3" ] || build_python
install_project
compile_hot_path
"$python" -c 'import sys
print(sys.version, "lock on" if getattr(sys, "_is_gil_enabled", lambda: True)() else "lock off")'
