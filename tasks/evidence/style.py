"""The style of all figures, and their conversion to SVG text.

The same data give the same bytes. Colours of text and lines are CSS variables with a fallback, so that a figure is
readable on light and dark pages and as a file of its own.
"""

import io
import re
from typing import Any

import matplotlib
from matplotlib.figure import Figure

# Placeholder colours, which `svg` replaces with the variables of the page.
INK, MUTED, LINE, SURFACE, ACCENT, WARN = (f"#01020{i}" for i in range(6))
_VARIABLES = {
    INK: "var(--ink, #1c2128)",
    MUTED: "var(--muted, #5b6470)",
    LINE: "var(--line, #d5dae1)",
    SURFACE: "var(--surface, #ffffff)",
    ACCENT: "var(--accent, #1d4ed8)",
    WARN: "var(--warn, #b45309)",
}
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 9,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "text.color": INK,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}


def svg(figure: Figure, name: str) -> str:
    """The figure as an <svg> element, without date and prolog; `name` makes its identifiers unique on the page."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :].strip()
    text = re.sub(r"<(metadata|style)\b.*?</\1>\s*", "", text, flags=re.DOTALL)  # a <style> would style the page
    text = re.sub(r'(\bid="|url\(#|xlink:href="#)', rf"\g<1>{name}-", text)
    text = re.sub(r"font-family: [^;\"]*", f"font-family: {_FONT}", text)
    for stand_in, variable in _VARIABLES.items():
        text = text.replace(stand_in, variable)
    return text
