"""The verdict on a pruned model in words, and the notes that belong to it."""

from dataclasses import dataclass
from typing import Any, Literal

ALPHA = 0.05  # a difference with a smaller p counts as detected
STRONG_PRIOR = 0.8  # a model that gives one answer on this share of the rows or more gets a note


@dataclass(frozen=True)
class Verdict:
    """The verdict on one cell.

    Attributes:
        tone: `better` or `worse` if accuracy or exact match changed detectably in this direction only, `mixed` if one
            improved and the other got worse, else `same`.
        headline: the title of the report.
        sentence: accuracy and exact match before and after pruning, with their paired tests.
        control: the same compared with random neurons.
    """

    tone: Literal["better", "worse", "mixed", "same"]
    headline: str
    sentence: str
    control: str


_NAMES = {"accuracy": "accuracy", "exact_match": "exact match"}
_METHODS = {
    "integrated_gradients": "integrated gradients",
    "gradient_x_activation": "gradient times activation",
    "activation": "mean activation",
    "relu_gradient": "rectified gradients",
    "saliency": "saliency",
    "shapley": "Shapley values",
    "deeplift": "DeepLIFT in the MLP",
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
    """The name of the method that computed the scores, from their header."""
    name = str(header.get("method", "integrated_gradients"))
    return _METHODS.get(name, name)


def meaning(header: dict[str, Any]) -> str:
    """What a neuron's score is, as sentences, from the header of the scores."""
    method, path = header.get("method"), header.get("path", "layer")
    projection = header.get("projection", "gate_proj").removesuffix("_proj")
    target = _TARGETS.get(header.get("target", ""), _TARGETS["max_logit"])
    if method == "activation":
        what = (
            "the mean absolute value of its output"
            if projection == "down"
            else "the mean absolute value of act(gate) × up"
        )
    elif method == "gradient_x_activation":
        what = f"the gradient of {target} with respect to a factor on its {projection} weights, at their trained values"
    elif method == "relu_gradient":
        what = (
            f"the mean positive part of the gradient of {target} with respect to the output of its {projection} "
            f"weights, summed over positions, while these weights go from zero to their trained values {_COMPANY[path]}"
        )
    elif method == "saliency":
        what = (
            f"the size of the gradient of {target} with respect to the output of its {projection} weights, summed over "
            "positions, at their trained values"
        )
    elif method == "shapley":
        what = (
            f"its estimated Shapley value: what {target} gains to first order when the neuron is put back, over random "
            "sets of its layer’s other neurons"
        )
    elif method == "deeplift":
        what = (
            f"the integrated gradient of {target} with respect to a common factor on act(gate) × up of its layer’s "
            "neurons"
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
    """Three decimals with a plus or a minus sign (U+2212); no sign on zero."""
    text = f"{abs(value):.3f}"
    if float(text) == 0:
        return text
    return ("+" if value > 0 else "−") + text


def p_value(p: float) -> str:
    """`p = 0.012`, or `p < 0.001`."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def percent(fraction: float) -> str:
    """`10 %` or `12.5 %`."""
    return f"{100 * fraction:.4g} %"


def counted(number: int, noun: str) -> str:
    """`1 neuron`, `154 neurons`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def significant(comparison: dict[str, Any]) -> int:
    """1 if the first system is detectably better, -1 if worse, 0 if neither."""
    if comparison["p"] >= ALPHA or comparison["difference"] == 0:
        return 0
    return 1 if comparison["difference"] > 0 else -1


def measured(evaluation: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The comparisons (`pruned_vs_base`, `pruned_vs_random`) of each measure: `accuracy` and `exact_match`."""
    comparisons = evaluation["comparisons"]
    return {"accuracy": comparisons, "exact_match": comparisons["exact_match"]}


def interval(comparison: dict[str, Any]) -> str:
    """The 95 % confidence interval of a paired difference: `−0.037 to +0.104`."""
    low, high = comparison["interval"]
    return f"{signed(low)} to {signed(high)}"


def verdict(pruned: dict[str, Any], evaluation: dict[str, Any]) -> Verdict:
    """The verdict on one cell, from its pruned.json and evaluation.json.

    A difference counts as detected if the exact McNemar test gives p < 0.05. Accuracy and exact match are tested each;
    the levels are not corrected for these being two tests.
    """
    changes = {name: significant(measure["pruned_vs_base"]) for name, measure in measured(evaluation).items()}
    signs = set(changes.values())
    tone: Literal["better", "worse", "mixed", "same"] = (
        "mixed" if {1, -1} <= signs else "better" if 1 in signs else "worse" if -1 in signs else "same"
    )
    what = f"{counted(len(pruned['neurons']), 'neuron')} ({percent(pruned['fraction'])}) of layer {pruned['layer']}"
    rows = f" on {counted(evaluation['n'], 'held-out row')}"
    accuracy = _change("accuracy", evaluation, changes["accuracy"], rows)
    exact = _change("exact_match", evaluation, changes["exact_match"])
    control = " ".join(_control(name, evaluation) for name in changes)
    return Verdict(tone, _headline(changes, evaluation), f"Pruning {what} {accuracy}. It {exact}.", control)


def _change(name: str, evaluation: dict[str, Any], sign: int, rows: str = "") -> str:
    """What pruning does to a measure, as the rest of a sentence, with the test in brackets."""
    before, after = (evaluation["systems"][system][name] for system in ("base", "pruned"))
    comparison = measured(evaluation)[name]["pruned_vs_base"]
    if sign:
        change = f"{'raises' if sign > 0 else 'lowers'} {_NAMES[name]} from {before:.3f} to {after:.3f}{rows}"
    else:
        change = f"does not detectably change {_NAMES[name]}{rows}: {before:.3f} before, {after:.3f} after"
    return (
        f"{change} (paired difference {signed(comparison['difference'])}, 95 % interval {interval(comparison)}, "
        f"exact McNemar {p_value(comparison['p'])})"
    )


def _headline(changes: dict[str, int], evaluation: dict[str, Any]) -> str:
    if not any(changes.values()):
        return "No detectable difference"
    verbs = {1: "improves", -1: "lowers"}
    gains = [name for name, sign in changes.items() if sign > 0]
    losses = [name for name, sign in changes.items() if sign < 0]
    changed = [
        f"{verbs[sign]} {' and '.join(_NAMES[name] for name in names)}"
        for sign, names in ((1, gains), (-1, losses))
        if names
    ]
    headline = f"Pruning {' and '.join(changed)}"
    beaten = [
        significant(random) > 0 for name in gains for random in measured(evaluation)[name]["pruned_vs_random"].values()
    ]
    if gains and not losses and not any(beaten):
        return f"{headline}, but no more than random neurons do"
    unchanged = [_NAMES[name] for name, sign in changes.items() if not sign]
    return headline + (f"; {unchanged[0]} does not change detectably" if unchanged else "")


def _control(name: str, evaluation: dict[str, Any]) -> str:
    """How the pruned model compares with random neurons in a measure, as one sentence."""
    random = evaluation["systems"]["random"]
    key = "by_seed" if name == "accuracy" else f"{name}_by_seed"
    values = list(random[key].values())
    signs = [significant(comparison) for comparison in measured(evaluation)[name]["pruned_vs_random"].values()]
    n, better, worse = len(values), signs.count(1), signs.count(-1)
    text = (
        f"Random neurons of the same layer and number: {_NAMES[name]} {random[name]:.3f}"
        if name == "accuracy"
        else f"Their {_NAMES[name]}: {random[name]:.3f}"
    )
    if n > 1:
        text += f" on average over {n} draws ({min(values):.3f} to {max(values):.3f})"
    if not better and not worse:
        outcome = "not detectably different from " + ("them" if n == 1 else "any of them")
    elif n in (better, worse):
        outcome = f"detectably {'better' if better else 'worse'} than " + ("them" if n == 1 else "each of them")
    else:
        parts = [f"{word} than {count}" for word, count in (("better", better), ("worse", worse)) if count]
        outcome = f"detectably {' and '.join(parts)} of the {n}"
    return f"{text}; the pruned model is {outcome}."


def option_name(options: list[str] | None, index: int) -> str:
    """The option without surrounding spaces; its number if options differ by row (`options` is None)."""
    return f"option {index + 1}" if options is None else options[index].strip()


def notes(evaluation: dict[str, Any]) -> list[str]:
    """Warnings about the accuracies: a model that mostly gives one answer, and a better constant answer."""
    options, n = evaluation["options"], evaluation["n"]
    gold = [sum(row) for row in evaluation["systems"]["base"]["confusion"]]
    most = max(range(len(gold)), key=gold.__getitem__)
    warnings = []
    for name in ("base", "pruned"):
        predicted = evaluation["systems"][name]["predicted"]
        top = max(range(len(predicted)), key=predicted.__getitem__)
        if predicted[top] >= STRONG_PRIOR * n:
            warnings.append(
                f"The {name} model answers “{option_name(options, top)}” on {percent(round(predicted[top] / n, 3))} "
                f"of the rows; this is the right answer on {percent(round(gold[top] / n, 3))}."
            )
    best = evaluation["systems"]["pruned"]["accuracy"]
    if gold[most] / n >= best:
        warnings.append(
            f"Always answering “{option_name(options, most)}” would score {gold[most] / n:.3f}, "
            f"{'as much as' if gold[most] / n == best else 'more than'} the pruned model."
        )
    return warnings


def trail(pruned: dict[str, Any], pairs: int) -> list[str]:
    """The tie-break trail of pruned.json in words; `pairs` is the number of (layer, fraction) pairs of the grid."""
    steps = []
    left = pairs
    for step in pruned["trail"]:
        best = step["best"]
        value = {
            "accuracy": f"the highest adaptation accuracy is {best:.3g}",
            "within one standard error of the best accuracy": "the accuracy of some is within one error of the best",
            "smaller fraction": f"the smallest fraction is {percent(best)}",
            "lower layer": f"the lowest layer is {best:.0f}",
        }.get(step["rule"], f"the highest {step['rule']} is " + f"{best:.3f}".replace("-", "−"))
        tied = "one pair is left" if step["tied"] == 1 else f"{step['tied']} pairs are tied"
        steps.append(f"Of {counted(left, 'pair')}, {value}: {tied}.")
        left = step["tied"]
    return steps
