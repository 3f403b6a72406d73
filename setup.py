"""``THREADBRIDGE_COMPILE=1 pip install .`` compiles the hot path (docs/performance.md); the rest is in setup.cfg."""

import os
import runpy
import sys
from configparser import ConfigParser

from setuptools import setup

extensions = []
needed = ""
if os.environ.get("THREADBRIDGE_COMPILE") == "1":
    if {"egg_info", "dist_info"} & set(sys.argv):
        # pip asks what building needs: the compiler, and the types of the libraries that the modules use.
        config = ConfigParser()
        config.read("setup.cfg")
        extras = config["options.extras_require"]
        needed = config["options"]["install_requires"] + extras["fast"] + extras["metrics"]
    else:
        from mypyc.build import mypycify

        modules = runpy.run_path("threadbridge/compiled.py")["MODULES"]
        paths = [f"threadbridge/{name.replace('.', '/')}.py" for name in modules]
        extensions = mypycify(paths, group_name="threadbridge._compiled")

setup(ext_modules=extensions, setup_requires=needed)
