"""Writes the tables of docs/settings.md: ``python .ci/settings_page.py``."""

import re
from pathlib import Path

from threadbridge.settings.table import ALL, BridgeSettings, CommandLineSettings, Settings, option_name

PAGE = Path(__file__).parents[1] / "docs" / "settings.md"


def with_tables(page: str) -> str:
    """The page with up-to-date tables, each between a comment that names its class and the next heading."""
    written: set[str] = set()
    for declaration in (BridgeSettings, Settings, CommandLineSettings):
        rows = [_row(name) for name in declaration.__annotations__ if name not in written]
        table = "\n".join(["| setting | value | default | meaning |", "|---|---|---|---|", *rows])
        start = f"<!-- {declaration.__name__} -->\n"
        new = f"{start}\n{table}\n".replace("\\", r"\\")
        page, count = re.subn(f"{start}.*?(?=\n## )", new, page, flags=re.DOTALL)
        if count != 1:
            raise ValueError(f"{PAGE}: expected once: {start}")
        written.update(declaration.__annotations__)
    return page


def _row(name: str) -> str:
    setting = ALL[name]
    option = f", as an option `--{option_name(name)}`" if option_name(name) != name else ""
    default = setting.show(setting.default)
    cells = f"`{name}`{option}", ", ".join(setting.kind.metavar.split("|")), default and f"`{default}`", setting.meaning
    return f"| {' | '.join(cells)} |".replace("*", "\\*")


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text()))
