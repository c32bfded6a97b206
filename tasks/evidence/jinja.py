"""The templates of all pages: everything that is not markup is escaped, and a missing value is an error."""

import re
from pathlib import Path

import jinja2

from tasks.evidence import verdict as words


def templates(*folders: Path) -> jinja2.Environment:
    """Those in `folders`, each before the ones in this package, with the filters that numbers are written by."""
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
    environment.filters |= {"tight": lambda text: re.sub(r"(±|=|<) |(p) (?=[=<])", "\\1\\2\u00a0", text)}
    return environment


def width(svg: str) -> int:
    """Pixels that a figure of `tasks.evidence.style.svg` is wide where its text has its own size."""
    found = re.search(r'<svg [^>]*\bwidth="([\d.]+)pt"', svg)
    if found is None:
        raise ValueError("not a figure with a width in points")
    return round(float(found[1]) * 4 / 3)
