"""What `dsm study`, `dsm explain --nsa` and `dsm sparsify` add to params.yaml: one entry a run."""

from typing import Literal

from pydantic import Field, model_validator

from tasks.pipeline.names import STUDIES, SYSTEMS, WEIGHT_METHODS
from tasks.runtime.fields import NAME, Count, Fraction, Seed, Sha256, Strict

RESERVED = ("own", "none")  # calibration sets of the study: the cell's own train prompts, and that of magnitude


class StudyRun(Strict):
    """One study of one cell; what a study does not look at keeps its default.

    Attributes:
        test: test rows; None: `limits.test` of the benchmark.
        systems: compare: beside the base and the pruned model.
        protocol: compare: the rows on which systems choose their own settings; `published` is the test rows, as the
            code that was published with SADI does.
        sizes: seeds: rows of the adaptation set.
        seeds: seeds: draws of each size; calibration: draws of the adaptation set that DSM pruning is shown with.
        benchmarks: multilingual and domains: the ones beside the cell's own; calibration: those whose train prompts
            are calibration sets, too. All declared.
        texts: calibration: further calibration sets, name -> file (JSONL with a `text` each, or plain text).
        methods: calibration.
        sparsities: calibration.
        sequences: calibration and bridge: of 512 tokens, in each set.
        inputs: hashes of `benchmarks` and `texts`, by name (`tasks.pipeline.study_inputs`); `dsm study` writes them.
    """

    study: Literal[STUDIES]  # type: ignore[valid-type]
    model: str
    benchmark: str
    test: Count | None = None
    systems: list[Literal[SYSTEMS]] = Field(default=list(SYSTEMS), min_length=1)  # type: ignore[valid-type]
    protocol: Literal["adaptation", "published"] = "adaptation"
    sizes: list[Count] = Field(default=[10, 50, 100], min_length=1)
    seeds: Count = 5
    benchmarks: list[str] = Field(default=[])
    texts: dict[str, str] = Field(default={})
    methods: list[Literal[WEIGHT_METHODS]] = Field(default=list(WEIGHT_METHODS), min_length=1)  # type: ignore[valid-type]
    sparsities: list[Fraction] = Field(default=[0.3, 0.5], min_length=1)
    sequences: Count = 8
    inputs: dict[str, Sha256] = Field(default={})

    @model_validator(mode="after")
    def _fits_together(self) -> "StudyRun":
        users = {
            "compare": ("systems", "protocol"),
            "seeds": ("sizes", "seeds"),
            "multilingual": ("benchmarks", "inputs"),
            "domains": ("benchmarks", "inputs"),
            "calibration": ("benchmarks", "texts", "methods", "sparsities", "sequences", "seeds", "inputs"),
            "bridge": ("sequences",),
        }
        for field in sorted(self.model_fields_set - {"study", "model", "benchmark", "test"}):
            if field not in users.get(self.study, ()):
                raise ValueError(f"{field}: the study {self.study} does not look at it")
        for field in ("benchmarks", "systems", "sizes", "methods", "sparsities"):
            values = getattr(self, field)
            if len(set(values)) < len(values):
                raise ValueError(f"{field}: holds a value twice")
        if self.benchmark in self.benchmarks:
            raise ValueError(f"benchmarks: {self.benchmark} is the cell's own, which the study looks at anyway")
        for name in self.texts:
            if not NAME.fullmatch(name) or name in (*RESERVED, *self.benchmarks):
                raise ValueError(
                    f"texts.{name}: must be a name of letters, digits, - and _ that no other calibration set has; "
                    f"{', '.join(RESERVED)} are taken"
                )
        if self.study in ("multilingual", "domains") and not self.benchmarks:
            raise ValueError(f"benchmarks: the study {self.study} needs some beside {self.benchmark}")
        return self

    @property
    def name(self) -> str:
        return f"{self.study}-{self.model}-{self.benchmark}"


class NsaRun(Strict):
    """Neuron Semantic Attribution of one cell.

    Attributes:
        rows: test rows, the first; their labels are not looked at.
        words: influential words of each row.
        by: who finds them: `gradients` (of the model's own answer) or `generation` (the model is asked for them).
        method: of the weight pruning that stands beside the cell's own.
        sparsity: of it.
    """

    model: str
    benchmark: str
    rows: Count = 100
    words: Count = 5
    by: Literal["gradients", "generation"] = "gradients"
    method: Literal[WEIGHT_METHODS] = "wanda"  # type: ignore[valid-type]
    sparsity: Fraction = 0.5

    @property
    def name(self) -> str:
        return f"{self.model}-{self.benchmark}"


class SparseRun(Strict):
    """One weight-pruned model; `sparsity` or `n_of_m` is given.

    Attributes:
        sparsity: the part of the weights of each matrix (wanda: of each row) that is removed.
        n_of_m: [2, 4]: of every 4 consecutive weights of a row, 2 are kept.
        calibration: a file of texts (JSONL with a `text` each, or plain text), or data/benchmarks/B, whose train
            prompts are taken; magnitude does not look at it.
        sequences: of calibration, at most.
        length: tokens of each.
        seed: of their draw.
    """

    method: Literal[WEIGHT_METHODS]  # type: ignore[valid-type]
    model: str
    sparsity: Fraction | None = None
    n_of_m: tuple[Count, Count] | None = None
    calibration: str
    sequences: Count = 8
    length: Count = 512
    seed: Seed = 0

    @model_validator(mode="after")
    def _one_target(self) -> "SparseRun":
        if (self.sparsity is None) == (self.n_of_m is None):
            raise ValueError("one of sparsity and n_of_m is needed")
        if self.n_of_m and self.n_of_m[0] >= self.n_of_m[1]:
            raise ValueError("n_of_m: of m weights, n from 1 to m - 1 are kept")
        return self
