"""Pictures as SVG text: one house style, drawn with matplotlib's objects and no global figure.

Colors are those of Okabe and Ito (2008), told apart by color-blind readers, and of medium lightness, so that a picture
works on a light and on a dark page. Text, axes and grid take the color of the page around them.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from irlhf.errors import ConfigError

BLUE, ORANGE, GREEN, PINK, SKY, YELLOW = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#b8a100"
CYCLE = (BLUE, ORANGE, GREEN, PINK, SKY, YELLOW)
INK, FAINT = "#010203", "#040506"
"""Stand-ins for the page's own text color, full and faint; matplotlib knows no such thing as ``currentColor``."""
COLORS = "viridis"

_STYLE: Any = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a label is what the user wrote, also with dollar signs
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.labelsize": 10,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": True,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.linewidth": 0.8,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.8,
}


class Picture(NamedTuple):
    """A picture for a page: what it shows, the drawing as SVG text, and a sentence on how to read it."""

    title: str
    svg: str
    caption: str


def draw(width: float, height: float, paint: Callable[[Any], None], *, name: str = "picture") -> str:
    """SVG text of a figure of ``width`` x ``height`` inches that ``paint(figure)`` fills.

    The same drawing gives the same text: no dates, no random ids.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError('pictures need matplotlib: pip install "irlhf[report]"') from error
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        paint(figure)
        out = io.StringIO()
        figure.savefig(
            out, format="svg", dpi=150, metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
        )
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]
    return svg.replace(INK, "currentColor").replace(FAINT, "rgb(128,128,128,0.3)")


def inline(svg: str, prefix: str, label: str) -> str:
    """An SVG as part of an HTML page: ids of its own, no declarations, a name for screen readers."""
    from html import escape

    svg = re.sub(r"<!--.*?-->", "", svg[svg.index("<svg") :], flags=re.S)

    def local(match: re.Match[str]) -> str:
        tag = re.sub(r'\bid="', f'id="{prefix}-', match[0])
        return re.sub(r'(xlink:href="#|href="#|url\(#)', rf"\1{prefix}-", tag).replace("xlink:href", "href")

    svg = re.sub(r"<[^>]+>", local, svg)
    head, rest = svg.split(">", 1)
    view = re.search(r'viewBox="[^"]*"', head)
    width = re.search(r'width="([\d.]+)pt"', head)
    style = f' style="max-width:{float(width[1]) * 4 / 3:.0f}px"' if width else ""
    return f'<svg {view[0] if view else ""} role="img" aria-label="{escape(label)}"{style}>{rest}'


def shorten(label: Any, length: int = 38) -> str:
    """A label that fits beside an axis; the middle goes first, because names differ at their ends."""
    text = " ".join(str(label).split())
    if len(text) <= length:
        return text
    head = (length - 1) * 2 // 3
    return text[:head] + "…" + text[head - length + 1 :]
