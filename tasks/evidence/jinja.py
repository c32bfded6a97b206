"""The Jinja environment of all pages: values are escaped, and a missing value is an error."""

import re
from pathlib import Path

import jinja2

from tasks.evidence import verdict as words


def templates(*folders: Path) -> jinja2.Environment:
    """The templates in `folders`, then those in this package, with the filters that format numbers."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([*folders, Path(__file__).parent]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"signed": words.signed, "p_value": words.p_value, "percent": words.percent}
    environment.filters |= {"minus": lambda text: str(text).replace("-", "−"), "counted": words.counted}
    environment.filters |= {"width": width, "interval": words.interval}
    environment.filters |= {"tight": tight}
    return environment


def tight(text: str) -> str:
    """The text without line breaks inside `± 0.02`, `p = 0.01` and `95 %`."""
    return re.sub(r"(?<=[±=<]) |(?<=\bp) (?=[=<])|(?<=\d) (?=%)", "\u00a0", text)


def width(svg: str) -> int:
    """The width in pixels of a figure of `tasks.evidence.style.svg` at its own size."""
    match = re.search(r'<svg [^>]*\bwidth="([\d.]+)pt"', svg)
    if match is None:
        raise ValueError("not a figure with a width in points")
    return round(float(match[1]) * 4 / 3)
