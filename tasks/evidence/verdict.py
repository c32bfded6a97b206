"""What the numbers say, in words: the verdict on a pruned model, and what to keep in mind beside it."""

from dataclasses import dataclass
from typing import Any, Literal

ALPHA = 0.05  # level below which a difference counts as detected
STRONG_PRIOR = 0.8  # share of rows with the same answer from which a model is said to lean on one option


@dataclass(frozen=True)
class Verdict:
    """`tone` is what was detected; `sentence` holds the numbers, `control` compares with random neurons."""

    tone: Literal["better", "worse", "same"]
    headline: str
    sentence: str
    control: str


_METHODS = {
    "integrated_gradients": "integrated gradients",
    "gradient_x_activation": "gradient times activation",
    "activation": "mean activation",
    "relu_gradient": "rectified gradients",
}
_TARGETS = {
    "max_logit": "the largest next-token logit",
    "max_logit_remaximised": "the largest next-token logit, whichever token has it along the way,",
    "max_option_logit": "the largest logit among the options’ first tokens",
    "option_margin": "the margin between the two largest logits of the options’ first tokens",
}
_COMPANY = {
    "layer": "with the other neurons of its layer",
    "all_layers": "with all neurons of all layers",
}


def method_name(header: dict[str, Any]) -> str:
    """How the scores were computed, from their header."""
    name = str(header.get("method", "integrated_gradients"))
    return _METHODS.get(name, name)


def meaning(header: dict[str, Any]) -> str:
    """What a neuron's score is, from the header of the scores: the beginning of a sentence about the examples."""
    method, path = header.get("method"), header.get("path", "layer")
    projection = header.get("projection", "gate_proj").removesuffix("_proj")
    target = _TARGETS.get(header.get("target", ""), _TARGETS["max_logit"])
    if method == "activation":
        what = "the mean size of its output" if projection == "down" else "the mean size of act(gate) × up"
    elif method == "gradient_x_activation":
        what = f"the gradient of {target} by a factor on its {projection} weights, at their trained values"
    elif method == "relu_gradient":
        what = (
            f"the mean positive part of the gradient of {target} by what its {projection} weights give, summed over "
            f"positions, while these go from zero to their trained values {_COMPANY[path]}"
        )
    elif path == "single":
        what = f"what {target} loses when its {projection} weights alone are set to zero"
    else:
        what = (
            f"the integrated gradient of {target} along its {projection} weights, from zero to their trained values, "
            f"{_COMPANY[path]}"
        )
    return f"A neuron’s score is {what}; averaged over the {header['n']} examples. No labels are used here."


def signed(value: float) -> str:
    """Three decimals with a sign; a true minus, and no sign on zero."""
    text = f"{abs(value):.3f}"
    if float(text) == 0:
        return text
    return ("+" if value > 0 else "−") + text


def p_value(p: float) -> str:
    """`p = 0.012`, or `p < 0.001`."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def percent(fraction: float) -> str:
    """`10 %`; a decimal only where it is needed."""
    return f"{100 * fraction:.4g} %"


def counted(number: int, noun: str) -> str:
    """`1 neuron`, `154 neurons`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def significant(comparison: dict[str, Any]) -> int:
    """1 if the first system is detectably better, -1 if worse, 0 if neither."""
    if comparison["p"] >= ALPHA or comparison["difference"] == 0:
        return 0
    return 1 if comparison["difference"] > 0 else -1


def verdict(pruned: dict[str, Any], evaluation: dict[str, Any]) -> Verdict:
    """The verdict on one cell, from its pruned.json and evaluation.json.

    A difference is called one only if the exact McNemar test finds it at the 5 % level.
    """
    base, after = (evaluation["systems"][name]["accuracy"] for name in ("base", "pruned"))
    comparison = evaluation["comparisons"]["pruned_vs_base"]
    tone: dict[int, Literal["better", "worse", "same"]] = {1: "better", -1: "worse", 0: "same"}
    found = tone[significant(comparison)]
    what = f"{counted(len(pruned['neurons']), 'neuron')} ({percent(pruned['fraction'])}) of layer {pruned['layer']}"
    rows = f"on {counted(evaluation['n'], 'held-out row')}"
    test = (
        f"(paired difference {signed(comparison['difference'])} ± {comparison['stderr']:.3f}, "
        f"exact McNemar {p_value(comparison['p'])})"
    )
    if found == "same":
        sentence = (
            f"Pruning {what} makes no detectable difference: accuracy is {base:.3f} before and {after:.3f} after, "
            f"{rows} {test}."
        )
    else:
        verb = "raises" if found == "better" else "lowers"
        sentence = f"Pruning {what} {verb} accuracy from {base:.3f} to {after:.3f} {rows} {test}."
    headline = {
        "better": "Pruning improves this model here",
        "worse": "Pruning harms this model here",
        "same": "No detectable difference",
    }[found]
    beaten = [significant(random) == 1 for random in evaluation["comparisons"]["pruned_vs_random"].values()]
    if found == "better" and not any(beaten):
        headline = "Better than the base, but not than random neurons"
    return Verdict(found, headline, sentence, _control(evaluation))


def _control(evaluation: dict[str, Any]) -> str:
    random = evaluation["systems"]["random"]
    seeds = list(random["by_seed"].values())
    found = [significant(comparison) for comparison in evaluation["comparisons"]["pruned_vs_random"].values()]
    if len(seeds) == 1:
        told = {1: "the pruned model is better", -1: "the pruned model is worse", 0: "no detectable difference"}
        return f"Random neurons of the same layer and number: {seeds[0]:.3f}; {told[found[0]]}."
    text = (
        f"Random neurons of the same layer and number: {random['accuracy']:.3f} on average over {len(seeds)} draws "
        f"({min(seeds):.3f} to {max(seeds):.3f}); "
    )
    if not any(found):
        return text + "the pruned model differs detectably from none of them."
    better, worse = found.count(1), found.count(-1)
    if len(seeds) in (better, worse):
        return text + f"the pruned model is detectably {'better' if better else 'worse'} than each of them."
    parts = [f"better than {better}"] if better else []
    parts += [f"worse than {worse}"] if worse else []
    return text + f"the pruned model is detectably {' and '.join(parts)} of the {len(seeds)}."


def option_name(options: list[str] | None, index: int) -> str:
    """The option as the model sees it, without the space around it; its number where options differ by row."""
    return f"option {index + 1}" if options is None else options[index].strip()


def notes(evaluation: dict[str, Any]) -> list[str]:
    """What a reader of the accuracies must know: leanings toward one option, and the majority answer."""
    options, n = evaluation["options"], evaluation["n"]
    gold = [sum(row) for row in evaluation["systems"]["base"]["confusion"]]
    most = max(range(len(gold)), key=gold.__getitem__)
    found = []
    for name in ("base", "pruned"):
        predicted = evaluation["systems"][name]["predicted"]
        top = max(range(len(predicted)), key=predicted.__getitem__)
        if predicted[top] >= STRONG_PRIOR * n:
            found.append(
                f"The {name} model answers “{option_name(options, top)}” on {percent(round(predicted[top] / n, 3))} "
                f"of the rows; the right answer is that on {percent(round(gold[top] / n, 3))}."
            )
    best = evaluation["systems"]["pruned"]["accuracy"]
    if gold[most] / n >= best:
        found.append(
            f"Always answering “{option_name(options, most)}” would score {gold[most] / n:.3f}, "
            f"{'as much as' if gold[most] / n == best else 'more than'} the pruned model."
        )
    return found


def trail(pruned: dict[str, Any], pairs: int) -> list[str]:
    """The tie-break trail of pruned.json in words; `pairs` is the number of (layer, fraction) pairs of the grid."""
    steps = []
    left = pairs
    for step in pruned["trail"]:
        best = step["best"]
        value = {
            "accuracy": lambda v: f"the highest adaptation accuracy is {v:.3g}",
            "mean gold margin": lambda v: f"the highest mean gold margin is {v:.3f}".replace("-", "−"),
            "smaller fraction": lambda v: f"the smallest fraction is {percent(v)}",
            "lower layer": lambda v: f"the lowest layer is {v:.0f}",
        }[step["rule"]](best)
        tied = "one pair is left" if step["tied"] == 1 else f"{step['tied']} pairs are tied"
        steps.append(f"Of {counted(left, 'pair')}, {value}: {tied}.")
        left = step["tied"]
    return steps
