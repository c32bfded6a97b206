"""nsa.html: nsa.json as a self-contained interactive page."""

import base64
import hashlib
from pathlib import Path
from typing import Any

from markupsafe import Markup

from tasks.evidence import verdict as words
from tasks.evidence.jinja import templates

LEVEL = 0.05
NAMED = 5  # words in a sentence


def render(results: dict[str, Any]) -> str:
    """The page for the content of nsa.json; it depends only on the content.

    The content is embedded as JSON without <, > and &, so that the text of a row cannot close its element. The page's
    content security policy allows only its own script, by hash, and this script writes text, never markup.
    """
    here = Path(__file__).parent
    script = (here / "nsa.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        templates(here)
        .get_template("nsa.html.j2")
        .render(
            results=results,
            script=Markup(script),
            digest=digest,
            sentences=[sentence(results, name) for name in results["systems"]],
        )
    )


def sentence(results: dict[str, Any], name: str) -> str:
    """The effect of one kind of pruning on the influential words, tested at the 5 % level."""
    test = results["systems"][name]["permutation"]
    result = "detectably more than" if test["p"] < LEVEL else "not detectably more than"
    against = (
        f"{result} at random words as frequent ({words.percent(round(test['random'], 3))}, {words.p_value(test['p'])})"
        if test["exchangeable"]
        else "and no other words are as frequent, to compare them with"
    )
    title = results["names"][name][:1].upper() + results["names"][name][1:]
    text = (
        f"{title}: at the {words.counted(test['chosen'], 'influential word')} activations drop by "
        f"{words.percent(round(test['mean'], 3))} on average, {against}"
    ).replace("-", "−")
    most = [word for word in results["words"] if (word["systems"][name]["lost"] or 0) > 0.5]
    most.sort(key=lambda word: (-word["systems"][name]["lost"], word["word"]))
    if not most:
        return f"{text}; no word lost most of its neurons."
    named = ", ".join(f"“{word['word']}”" for word in most[:NAMED])
    more = f" and {len(most) - NAMED} more" if len(most) > NAMED else ""
    return f"{text}; lost most of their neurons: {named}{more}."
