"""Messages about the unpruned model's answers to some train rows (`tasks.method.preflight`)."""

from typing import Any

ONE_OPTION = 0.95  # the share of the rows from which on the model counts as answering with one option
ADVICE = (
    "pruning can hardly improve on that; what often helps: `chat_template: true` for a model that was trained to chat, "
    "another `template` of the benchmark, options spelled as the model writes them"
)
ALL_CORRECT = (
    "no pruned model can be better on these examples, so the search only compares margins; `--seed` draws other "
    "examples, and a larger `adaptation.size` more of them"
)


def describe_answers(answers: dict[str, Any]) -> str:
    """One line about the result of `preflight`.

    Example:
        >>> answers = {"n": 40, "labeled": 10, "accuracy": 0.6, "predicted": [38, 2], "options": [" no", " yes"]}
        >>> describe_answers(answers)
        "the unpruned model answers 40 train rows with ' no' 38, ' yes' 2 times, and 6 of the 10 examples correctly"
    """
    options, predicted = answers["options"], answers["predicted"]
    names = [repr(option) for option in options] if options else [f"option {1 + i}" for i in range(len(predicted))]
    counts = ", ".join(f"{name} {count}" for name, count in zip(names, predicted, strict=True))
    correct = round(answers["accuracy"] * answers["labeled"])
    return (
        f"the unpruned model answers {answers['n']} train rows with {counts} times, "
        f"and {correct} of the {answers['labeled']} examples correctly"
    )


def warning(answers: dict[str, Any]) -> str | None:
    """The warning if nothing can be learned: one option answers (almost) all rows, or all examples are correct."""
    share = max(answers["predicted"]) / answers["n"]
    advice = ADVICE if share >= ONE_OPTION else ALL_CORRECT if answers["accuracy"] == 1 else None
    return advice and f"{describe_answers(answers)}: {advice}"
