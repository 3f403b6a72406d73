"""``THREADBRIDGE_COMPILE=1 pip install .`` compiles the hot path (docs/performance.md); the rest is in setup.cfg."""

import os
import runpy
import sys

from setuptools import setup

extensions = []
needed = []
if os.environ.get("THREADBRIDGE_COMPILE") == "1":
    # The compiler reads the types of what the modules import.
    needed = ["mypy[mypyc]", "tornado", "httptools"]
    # The first calls of pip only ask what is needed.
    if not {"egg_info", "dist_info"} & set(sys.argv):
        from mypyc.build import mypycify

        modules = runpy.run_path("threadbridge/compiled.py")["MODULES"]
        extensions = mypycify([f"threadbridge/{name}.py" for name in modules], group_name="threadbridge._compiled")

setup(ext_modules=extensions, setup_requires=needed)
