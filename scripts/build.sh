#!/bin/sh
# Builds what a package index offers, by default into dist/: the source distribution, the wheel for any machine, and the
# compiled wheel for machines and the Python like these; then checks them. PYTHON=python3.13 builds for another Python.
# usage: scripts/build.sh [DIRECTORY]
set -eu
root=$(cd "$(dirname "$0")/.." && pwd -P)
directory=$(realpath -m "${1:-$root/dist}")
if [ -e "$directory" ] && [ -n "$(ls "$directory")" ]; then
    echo "build.sh: $directory is not empty, and its files would get mixed up with the new ones: remove them" >&2
    exit 2
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
python=$work/venv/bin/python
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_CONSTRAINT="$root/constraints.txt" PIP_BUILD_CONSTRAINT="$root/constraints.txt"
"$python" -m pip install --quiet pip build twine

# From a copy: files of earlier builds, which lie beside the sources, would get into the wheels.
mkdir "$work/source"
cd "$root"
cp -R setup.cfg setup.py README.md LICENSE threadbridge "$work/source"
find "$work/source" -name __pycache__ -prune -exec rm -rf {} +
THREADBRIDGE_COMPILE='' "$python" -m build --outdir "$directory" "$work/source"
# From the source distribution, like the other wheel: so it is known to be complete.
tar -C "$work" -xzf "$directory"/threadbridge-*.tar.gz
THREADBRIDGE_COMPILE=1 "$python" -m build --wheel --outdir "$directory" "$work"/threadbridge-*
"$python" -m twine check --strict "$directory"/*
