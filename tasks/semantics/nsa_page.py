"""nsa.html: nsa.json for a reader to explore, in one file that needs nothing but itself."""

import base64
import hashlib
from pathlib import Path
from typing import Any

from markupsafe import Markup

from tasks.evidence import verdict as words
from tasks.evidence.jinja import templates

LEVEL = 0.05
NAMED = 5  # words in a sentence


def render(found: dict[str, Any]) -> str:
    """The page about nsa.json's content. Equal content gives equal text.

    The content stands in it as JSON without <, > and &, so that no text of a row can end the element it is in; the
    page's policy runs no script but its own, which is named by its hash, and that writes text, never markup.
    """
    here = Path(__file__).parent
    script = (here / "nsa.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        templates(here)
        .get_template("nsa.html.j2")
        .render(
            found=found,
            script=Markup(script),
            digest=digest,
            sentences=[sentence(found, name) for name in found["systems"]],
        )
    )


def sentence(found: dict[str, Any], name: str) -> str:
    """What one way of pruning does to the influential words; a difference is one at the 5 % level only."""
    test = found["systems"][name]["permutation"]
    told = "detectably more than" if test["p"] < LEVEL else "not detectably more than"
    against = (
        f"{told} at random words as frequent ({words.percent(round(test['random'], 3))}, {words.p_value(test['p'])})"
        if test["exchangeable"]
        else "and no other words are as frequent, to compare them with"
    )
    title = found["names"][name][:1].upper() + found["names"][name][1:]
    text = (
        f"{title}: at the {words.counted(test['chosen'], 'influential word')} activations drop by "
        f"{words.percent(round(test['mean'], 3))} on average, {against}"
    ).replace("-", "−")
    most = [word for word in found["words"] if (word["systems"][name]["lost"] or 0) > 0.5]
    most.sort(key=lambda word: (-word["systems"][name]["lost"], word["word"]))
    if not most:
        return f"{text}; no word lost most of its neurons."
    named = ", ".join(f"“{word['word']}”" for word in most[:NAMED])
    more = f" and {len(most) - NAMED} more" if len(most) > NAMED else ""
    return f"{text}; lost most of their neurons: {named}{more}."
