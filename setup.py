"""``THREADBRIDGE_COMPILE=1 pip install .`` compiles the hot path (docs/performance.md); the rest is in setup.cfg."""

import os
import re
import runpy
import sys
from configparser import ConfigParser
from pathlib import Path

from setuptools import setup

extensions = []
needed = ""
if os.environ.get("THREADBRIDGE_COMPILE") == "1":
    if {"egg_info", "dist_info"} & set(sys.argv):
        # pip asks what building needs: the compiler, and the types of the libraries that the modules use.
        config = ConfigParser()
        config.read("setup.cfg")
        needed = config["options"]["install_requires"] + config["options.extras_require"]["compile"]
    else:
        from mypyc.build import mypycify

        modules = runpy.run_path("threadbridge/compiled.py")["MODULES"]
        paths = [f"threadbridge/{name.replace('.', '/')}.py" for name in modules]
        # Not by the strict rules of setup.cfg: optional libraries need not be installed here, and have no types then.
        flags = ["--config-file=", "--ignore-missing-imports"]
        extensions = mypycify([*flags, *paths], group_name="threadbridge._compiled")

# A package index shows the README without the files that it links to.
readme = Path("README.md").read_text(encoding="utf-8")
readme = re.sub(r"!\[[^]]*\]\((?!https?:)[^)]*\)\n*", "", readme)
readme = re.sub(r"\[([^]]*)\]\((?!https?:)[^)]*\)", r"\1", readme)

setup(ext_modules=extensions, setup_requires=needed, long_description=readme)
