"""Options of the method: the adaptation set, the attribution and the grid."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from tasks.runtime.fields import Count, Fraction, Seed, Strict


class Adaptation(Strict):
    """The adaptation set: the few train rows that the method may look at.

    Attributes:
        unlabeled: further train rows, of which the method may see all but the labels.
    """

    size: Count = 10
    seed: Seed = 0
    selection: Literal["random", "correct", "wrong"] = "random"
    unlabeled: Count = 50


class Attribution(Strict):
    """What a neuron's score is, and how it is computed; the formulas are in `tasks.method`."""

    method: Literal[
        "integrated_gradients",
        "gradient_x_activation",
        "activation",
        "relu_gradient",
        "saliency",
        "shapley",
        "deeplift",
    ] = "integrated_gradients"
    path: Literal["layer", "all_layers", "single"] = "layer"
    projection: Literal["gate_proj", "up_proj", "down_proj"] = "gate_proj"
    target: Literal["max_logit", "max_logit_remaximised", "max_option_logit", "option_margin"] = "max_logit"
    ranking: Literal["signed", "absolute"] = "signed"
    quadrature: Literal["adaptive", "riemann_right"] = "adaptive"
    steps: Count = 20
    tolerance: float = Field(default=0.01, gt=0)
    stability: float = Field(default=0.99, ge=0, le=1)
    max_nodes: int = Field(default=32, ge=4, lt=2**31)

    @model_validator(mode="after")
    def _fits_together(self) -> "Attribution":
        if self.path == "single" and self.method != "integrated_gradients":
            raise ValueError(f"path: single is an exact integral, which {self.method} does not have; use layer")
        if self.path != "layer" and self.method in ("gradient_x_activation", "activation", "saliency"):
            raise ValueError(f"path: {self.method} uses the full model only and has no path; leave it at layer")
        if self.path != "layer" and self.method in ("shapley", "deeplift"):
            raise ValueError(f"path: {self.method} scores the neurons of one layer only; leave it at layer")
        if self.projection != "gate_proj" and self.method == "deeplift":
            raise ValueError(
                "projection: deeplift differs from integrated_gradients for gate_proj only, whose output goes through "
                "an activation; use integrated_gradients"
            )
        if self.target != "max_logit" and self.method == "activation":
            raise ValueError("target: activation does not use the output; leave it at max_logit")
        return self

    def effective(self) -> dict[str, Any]:
        """The settings that the scores depend on; those of another method or rule are left out."""
        settings = self.model_dump()
        if self.method == "activation":
            del settings["target"]
        if self.method in ("gradient_x_activation", "activation", "saliency", "shapley", "deeplift"):
            del settings["path"]
        if self.method not in ("integrated_gradients", "deeplift") or self.path == "single":
            del settings["quadrature"]  # relu_gradient and shapley have a mean over `steps`, the others no integral
        adaptive = settings.get("quadrature") == "adaptive"
        steps = settings.get("quadrature") == "riemann_right" or self.method in ("relu_gradient", "shapley")
        unused = {"steps": not steps} | dict.fromkeys(("tolerance", "stability", "max_nodes"), not adaptive)
        return {name: value for name, value in settings.items() if not unused.get(name)}


class Search(Strict):
    """The grid: layers x these fractions of their neurons, which of its pairs are looked at, and which is chosen.

    Attributes:
        criterion: `paper` and `exact_match` choose the most accurate pair on the adaptation set, by the options'
            log-probabilities or by what the model writes. The others: `tasks.method.criteria`.
        cell: from_cell: a finished cell of a smaller model, MODEL-BENCHMARK.
        depths: from_cell: the relative depths, 0 to 1, of the layers that rank highest in that cell's grid, the best
            first (`tasks.method.strategies.best_depths`). They are part of the settings so that DVC compares them. The
            step `search` checks them against the grid; if they differ, its message has the right ones. The report of an
            exhaustive search shows which pair they would have chosen.
    """

    strategy: Literal["exhaustive", "coarse_to_fine", "layer_subset", "dropping", "from_cell"] = "exhaustive"
    cell: str | None = None
    depths: list[Annotated[float, Field(ge=0, le=1)]] | None = Field(default=None, min_length=1)
    fractions: list[Fraction] = Field(default=[0.05, 0.10, 0.15, 0.20, 0.25, 0.30, 0.35, 0.40], min_length=1)
    criterion: Literal[
        "paper",
        "exact_match",
        "gold_logprob",
        "smoothed",
        "one_standard_error",
        "mutual_information",
        "information_and_labels",
        "prior_corrected",
        "halves",
    ] = "paper"

    @property
    def reads_unlabeled(self) -> bool:
        """Whether the criterion reads rows without their labels."""
        return self.criterion in ("mutual_information", "information_and_labels", "prior_corrected")

    @property
    def reads_labels(self) -> bool:
        return self.criterion != "mutual_information"

    @property
    def reads_logprobs(self) -> bool:
        """Whether it needs more than how many rows are right, and by what margin."""
        return self.criterion not in ("paper", "exact_match")

    @model_validator(mode="after")
    def _strategy_fits_the_criterion(self) -> "Search":
        if self.strategy in ("coarse_to_fine", "dropping") and self.reads_logprobs:
            raise ValueError(
                f"criterion: {self.strategy} is based on accuracy, so it must be paper or exact_match; for "
                f"{self.criterion} use strategy: exhaustive, layer_subset or from_cell"
            )
        return self

    @model_validator(mode="after")
    def _names_its_cell(self) -> "Search":
        if self.strategy == "from_cell" and self.cell is None:
            raise ValueError("cell: from_cell needs the name of a finished cell of a smaller model, MODEL-BENCHMARK")
        return self

    @field_validator("fractions")
    @classmethod
    def _ascending(cls, value: list[float]) -> list[float]:
        if value != sorted(set(value)):
            raise ValueError("must be ascending, without repeats")
        return value
