"""explanation.html: explanation.json as a self-contained page."""

from pathlib import Path
from typing import Any

import matplotlib.style
from markupsafe import Markup
from matplotlib.figure import Figure

from tasks.evidence import verdict as words
from tasks.evidence.figures import WIDTH
from tasks.evidence.jinja import templates
from tasks.evidence.style import ACCENT, INK, LINE, MUTED, STYLE, svg
from tasks.explanation.bias import CALIBRATED, ORACLE

STRONGEST = 5  # tokens of a prompt that are listed under it

WHY = {
    "gained": "wrong before, right after",
    "lost": "right before, wrong after",
    "wrong": "wrong before and after",
}


def render(results: dict[str, Any], prompt: str) -> str:
    """The page for the content of explanation.json; it depends on the arguments alone.

    Args:
        prompt: the benchmark's template, shown once.
    """
    environment = templates(Path(__file__).parent)
    environment.filters |= {"visible": visible, "two": two_decimals}
    return environment.get_template("explanation.html.j2").render(
        results=results,
        prompt=prompt,
        options=_options(results),
        examples=[_example(example) for example in results["inputs"]["examples"]],
        reliability=Markup(reliability_figure(results["calibration"])),
        sentences=sentences(results),
        why=WHY,
    )


def sentences(results: dict[str, Any]) -> list[str]:
    """The findings in words: the prior, the confidence, the neurons. Differences are tested at the 5 % level."""
    return [_about_the_prior(results["bias"]), _about_confidence(results), _about_neurons(results)]


def _about_the_prior(bias: dict[str, Any]) -> str:
    against = {(pair["first"], pair["second"]): pair for pair in bias["comparisons"]}
    clauses = []
    phrases = {1: "detectably better than", -1: "detectably worse than", 0: "not detectably different from"}
    for first, second, name in (
        ("pruned", "base" + CALIBRATED, "the base model with its option prior divided out"),
        ("pruned" + ORACLE, "base" + ORACLE, "the base model, each at the threshold that is best for it on these rows"),
    ):
        if pair := against.get((first, second)):
            clauses.append(
                f"the pruned model is {phrases[words.significant(pair)]} {name} "
                f"({words.signed(pair['difference'])} ± {pair['stderr']:.3f}, {words.p_value(pair['p'])})"
            )
    if not clauses:
        return "This benchmark’s prompts have no content-free form, so no prior could be divided out."
    text = "; ".join(clauses)
    return f"{text[0].upper()}{text[1:]}."


def _about_confidence(results: dict[str, Any]) -> str:
    calibration = results["calibration"]
    gap = calibration["pruned_minus_base"]
    text = (
        f"The calibration error is {calibration['base']['ece']:.3f} before and {calibration['pruned']['ece']:.3f} "
        f"after (difference {words.signed(gap['difference'])} ± {gap['stderr']:.3f})"
    )
    sure = [calibration[name]["confidence_when_wrong"] for name in ("base", "pruned")]
    if None not in sure:
        text += f"; when wrong, the models give their answer {sure[0]:.2f} and {sure[1]:.2f} on average"
    return f"{text}."


def _about_neurons(results: dict[str, Any]) -> str:
    neurons = results["neurons"]
    part = words.percent(round(results["pruned"] / results["width"], 3))
    text = (
        f"The {words.counted(results['pruned'], 'pruned neuron')} ({part} of the layer) hold "
        f"{words.percent(round(neurons['share'], 3))} of its attribution"
    )
    gold = neurons["features"]["gold"]
    if gold["pruned"]["detected"] is None:
        return f"{text}."
    inside, outside = (gold[name] for name in ("pruned", "others"))
    return (
        f"{text}. At the last position the activation of {inside['detected']} of them correlates with the gold label, "
        f"and of {outside['detected']} of the other {outside['neurons']} (false discovery rate {neurons['level']:g}, "
        f"n = {neurons['n']})."
    )


def _options(results: dict[str, Any]) -> list[str]:
    width = len(results["bias"]["systems"]["base"]["predicted"])
    return [words.option_name(results["options"], i) for i in range(width)]


def _example(example: dict[str, Any]) -> dict[str, Any]:
    """An example with its tokens for the page; the largest share has the full colour."""
    sides = {}
    for name in ("before", "after"):
        shares = example[name]["shares"]
        top = max(map(abs, shares), default=0) or 1.0
        tokens = [
            {
                "text": visible(text),
                "share": share,
                "strength": round(100 * abs(share) / top),
                "template": i not in range(*example["own"]),
            }
            for i, (text, share) in enumerate(zip(example["tokens"], shares, strict=True))
        ]
        ranked = sorted(range(len(tokens)), key=lambda i: -abs(shares[i]))
        sides[name] = example[name] | {"shown": tokens, "strongest": [tokens[i] for i in ranked[:STRONGEST]]}
    return example | sides | {"names": [option.strip() for option in example["options"]]}


def visible(text: str) -> str:
    """A token's text with line feeds and unprintable characters made visible."""
    return "".join(
        "↵\n" if c == "\n" else c if c.isprintable() else "�" if ord(c) > 0xFFFF else f"\\x{ord(c):02x}" for c in text
    )


def two_decimals(value: float | None) -> str:
    """Two decimals with a minus sign; a dash for None."""
    return "–" if value is None else f"{value:.2f}".replace("-0.00", "0.00").replace("-", "−")


def reliability_figure(calibration: dict[str, Any]) -> str:
    """Accuracy by confidence in bins (area: number of rows), and the number of rows in each, before and after."""
    with matplotlib.style.context(["default", STYLE]):
        figure = Figure(figsize=(WIDTH, 3.2), layout="constrained")
        axes = figure.subplots(2, 2, sharex=True, sharey="row", height_ratios=[3, 1])
        for column, (name, colour) in enumerate((("base", INK), ("pruned", ACCENT))):
            bins = [one for one in calibration[name]["bins"] if one["n"]]
            upper, lower = axes[:, column]
            upper.plot([0, 1], [0, 1], color=LINE, lw=1.2, ls=(0, (4, 3)), zorder=0)
            upper.plot([b["confidence"] for b in bins], [b["accuracy"] for b in bins], "-", color=MUTED, lw=0.8)
            for one in bins:
                low, high = sorted((one["confidence"], one["accuracy"]))
                upper.vlines(one["confidence"], low, high, color=colour, lw=1, alpha=0.5)
                size = 4 + 12 * (one["n"] / calibration[name]["n"]) ** 0.5
                upper.plot(one["confidence"], one["accuracy"], "o", ms=size, color=colour, alpha=0.8, mew=0)
            upper.set(xlim=(0, 1), ylim=(-0.03, 1.03), title=f"{name}: ECE {calibration[name]['ece']:.3f}")
            middles = [(b["low"] + b["high"]) / 2 for b in calibration[name]["bins"]]
            lower.bar(middles, [b["n"] for b in calibration[name]["bins"]], width=0.09, color=colour)
        figure.supxlabel("probability of the answer, among the options", fontsize=9, color=MUTED)
        axes[0, 0].set_ylabel("accuracy")
        axes[1, 0].set_ylabel("rows")
        return svg(figure, "reliability")
