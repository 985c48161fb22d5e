"""Pictures as SVG text: one house style, drawn with matplotlib's objects and no global figure.

Colors are those of Okabe and Ito (2008), told apart by color-blind readers, and of medium lightness, so that a picture
works on a light and on a dark page. Text, axes and grid take the color of the page around them.
"""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from irlhf.errors import ConfigError

BLUE, ORANGE, GREEN, PINK, SKY, YELLOW = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#b8a100"
CYCLE = (BLUE, ORANGE, GREEN, PINK, SKY, YELLOW)
INK, FAINT = "#010203", "#040506"
"""Stand-ins for the page's own text color, full and faint; matplotlib knows no such thing as ``currentColor``."""
GRADED = "viridis"
DASHES = ("-", (0, (5, 2)), (0, (1, 1.5)), "-.", (0, (8, 2, 2, 2)), (0, (3, 1, 1, 1, 1, 1)))
"""Line styles beside the colors of ``CYCLE``, so that neither has to be told apart alone."""

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


def fading() -> Any:
    """A color map from nothing, whatever the page is, to full blue."""
    from matplotlib.colors import LinearSegmentedColormap, to_rgb

    return LinearSegmentedColormap.from_list("fading", [(*to_rgb(BLUE), 0.0), (*to_rgb(BLUE), 0.9)])


def warming() -> Any:
    """A color map from blue over gray to orange: all of it can be seen on a light and on a dark page."""
    from matplotlib.colors import LinearSegmentedColormap

    # Not quite BLUE and ORANGE: those alone, and not what lies between, would be made lighter on a dark page.
    return LinearSegmentedColormap.from_list("warming", ["#1a82c0", "#9a9a9a", "#de6a1a"])


def ink_on(level: float) -> str:
    """Black or white, whichever can be read on the graded color of a level from 0 to 1."""
    return "#ffffff" if level < 0.6 else "#000000"


def draw(width: float | int, height: float | int, paint: Callable[[Any], None], *, name: str = "picture") -> str:
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
        # Tight, because a label outside its axes must not be cut off.
        figure.savefig(
            out,
            format="svg",
            dpi=150,
            bbox_inches="tight",
            pad_inches=0.04,
            metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
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
    for name, color in (("blue", BLUE), ("orange", ORANGE)):  # a dark page may have lighter ones
        svg = svg.replace(f": {color}", f": var(--{name}, {color})")
    head, rest = svg.split(">", 1)
    view = re.search(r'viewBox="[^"]*"', head)
    width = re.search(r'width="([\d.]+)pt"', head)
    # At its own size where there is room; on a phone it shrinks as far as it can be read, then scrolls.
    pixels = float(width[1]) * 4 / 3 if width else 0.0
    style = f' style="max-width:{pixels:.0f}px;min-width:{0.5 * pixels:.0f}px"' if width else ""
    return f'<svg {view[0] if view else ""} role="img" aria-label="{escape(label)}"{style}>{rest}'


def shorten(label: Any, length: int = 38) -> str:
    """A label that fits beside an axis; the middle goes first, because names differ at their ends."""
    text = " ".join(str(label).split())
    if len(text) <= length:
        return text
    head = (length - 1) * 2 // 3
    return text[:head] + "…" + text[head - length + 1 :]


def shorten_all(labels: Sequence[Any], length: int = 38) -> list[str]:
    """Labels that fit, still told apart: what all have in common goes first."""
    texts = [" ".join(str(label).split()) for label in labels]
    short = [shorten(text, length) for text in texts]
    if len(set(short)) == len(set(texts)):
        return short
    head = _common(texts)
    tail = min(_common([t[::-1] for t in texts]), min(map(len, texts)) - head)
    result = []
    for text in texts:
        # The part that differs, and as much before it as fits.
        end = len(text) - tail
        start = max(0, min(head, end - length + 2))
        result.append(shorten("…" * (start > 0) + text[start:end] + "…" * (tail > 0), length))
    return result


def _common(texts: list[str]) -> int:
    """How many characters all texts begin with."""
    return next(
        (k for k, letters in enumerate(zip(*texts, strict=False)) if len(set(letters)) > 1), min(map(len, texts))
    )


def wrap(label: Any, width: int) -> str:
    """A label in lines of about so many characters."""
    return "\n".join(textwrap.wrap(str(label), width))
