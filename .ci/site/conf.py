"""The documentation site: ``python -m sphinx -W -c .ci/site docs build/site``."""

from __future__ import annotations

import os
import re
import sys
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
# Compiled functions have no docstrings.
os.environ["THREADBRIDGE_COMPILED"] = "0"

project = "threadbridge"
version = release = version_of(project)
html_title = f"{project} {version}"
html_theme = "furo"
extensions = ["myst_parser", "sphinx.ext.autodoc"]
myst_heading_anchors = 3
# In docstrings, names in single backticks.
default_role = "py:obj"
autodoc_member_order = "bysource"
html_extra_path = [str(ROOT / "docs" / "examples")]


def setup(app: Any) -> None:
    """See Sphinx."""
    app.connect("source-read", _without_links_to_code)


def _without_links_to_code(app: Any, docname: str, source: list[str]) -> None:
    """Begin with the README. Name files that are not part of the site in place of links to them; all must exist."""

    def name(match: re.Match[str]) -> str:
        text, target = match.groups()
        path = (directory / target.partition("#")[0]).resolve()
        if not path.exists():
            raise ValueError(f"{docname}.md links to {target}, which does not exist")
        return f"{text} (`{path.relative_to(ROOT)}`)"

    directory = ROOT / "docs"
    text = source[0]
    if docname == "index":
        directory = ROOT
        text = (ROOT / "README.md").read_text() + text
    elsewhere = r"(?:\.\./|(?:docs/)?examples/|benchmarks/|LICENSE)[^)]*"
    source[0] = re.sub(rf"(?<!!)\[([^\]]+)\]\(({elsewhere})\)", name, text).replace("](docs/", "](")
