"""``THREADBRIDGE_COMPILE=1 pip install .`` compiles the hot path (docs/performance.md); the rest is in setup.cfg."""

import os
import runpy
import sys

from setuptools import setup

extensions = []
needed = []
if os.environ.get("THREADBRIDGE_COMPILE") == "1":
    if {"egg_info", "dist_info"} & set(sys.argv):
        # pip asks what building needs: the compiler, and what has the types that the modules use, optional ones too.
        needed = ["mypy[mypyc]", "tornado", "httptools", "click", "prometheus_client", "uvloop"]
    else:
        from mypyc.build import mypycify

        modules = runpy.run_path("threadbridge/compiled.py")["MODULES"]
        paths = [f"threadbridge/{name.replace('.', '/')}.py" for name in modules]
        extensions = mypycify(paths, group_name="threadbridge._compiled")

setup(ext_modules=extensions, setup_requires=needed)
