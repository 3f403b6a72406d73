"""What the pictures have in common: colours for light and dark pages, and the frame."""

from __future__ import annotations

from html import escape

WIDTH = 860
MARGIN = 24

STYLE = """
svg { --paper: #ffffff; --edge: #d1d9e0; --ink: #1f2328; --quiet: #59636e; --grid: #e6eaef;
      --wait: #c9d1d9; --run: #0969da; --held: #e0a100; --page: #bf3989; }
@media (prefers-color-scheme: dark) {
  svg { --paper: #0d1117; --edge: #3d444d; --ink: #f0f6fc; --quiet: #9198a1; --grid: #262c36;
        --wait: #444c56; --run: #4493f8; --held: #e3b341; --page: #f778ba; }
}
text { font: 12px system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; fill: var(--quiet); }
.title { font-size: 17px; font-weight: 600; fill: var(--ink); }
.name { font-size: 15px; font-weight: 600; fill: var(--ink); }
.number { font-weight: 600; fill: var(--ink); }
.card { fill: var(--paper); stroke: var(--edge); }
.middle { text-anchor: middle; } .end { text-anchor: end; }
"""


def framed(body: str, height: float, style: str, description: str) -> str:
    """The SVG document. ``description`` is for those who do not see the picture."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" width="{WIDTH}" height="{height:g}"'
        f' role="img" aria-label="{escape(description)}">\n<style>{STYLE}{style}</style>\n'
        f'<rect class="card" x=".5" y=".5" width="{WIDTH - 1}" height="{height - 1:g}" rx="8"/>\n{body}\n</svg>\n'
    )
