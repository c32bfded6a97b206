"""The entries that `dsm study`, `dsm explain --nsa` and `dsm sparsify` add to params.yaml, one for each run."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from tasks.pipeline.names import RENAMED_STUDIES, STUDIES, SYSTEMS, WEIGHT_METHODS
from tasks.runtime.fields import NAME, Count, Fraction, Seed, Sha256, Strict

RESERVED = ("own", "none")  # names of calibration sets: the cell's train prompts, and no set (magnitude)


class StudyRun(Strict):
    """One study of one cell. A field that the study does not use must keep its default.

    Attributes:
        test: the number of test rows; None means `limits.test` of the benchmark.
        systems: compare: the systems besides the base and the pruned model.
        protocol: compare: the rows on which systems choose their settings; with `published` the test rows, as in the
            code published with SADI.
        sizes: seeds: the sizes of the adaptation set.
        seeds: seeds: draws of each size; calibration: draws of the adaptation set of DSM pruning, and with `covering`
            of each calibration set.
        benchmarks: cross_benchmark, word_neurons: the benchmarks besides the cell's; generation: benchmarks with free
            answers; calibration: benchmarks whose train prompts are further calibration sets. All must be declared.
        texts: calibration: further calibration sets, name -> file (JSONL with a `text` in each row, or plain text).
        methods: calibration: the weight-pruning methods.
        sparsities: calibration: the fractions of the weights that are removed.
        covering: calibration: in addition to each random draw of a calibration set, use a set of the same size that is
            chosen to cover the activations of a pool four times as large.
        pool: choice: the number of train rows whose log-probabilities are computed; ten labeled rows are drawn from
            them.
        draws: choice: the number of draws.
        sequences: calibration and bridge: the number of sequences, of 512 tokens each, in each calibration set.
        inputs: hashes of `benchmarks` and `texts`, by name (`tasks.pipeline.study_inputs`); `dsm study` writes them.

    Example:
        >>> StudyRun(study="seeds", model="smollm2-135m-instruct", benchmark="sst2", sizes=[10, 50]).name
        'seeds-smollm2-135m-instruct-sst2'
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
    covering: bool = False
    sequences: Count = 8
    pool: Annotated[int, Field(ge=20)] = 50
    draws: Count = 200
    inputs: dict[str, Sha256] = Field(default={})

    @field_validator("study", mode="before")
    @classmethod
    def _has_its_current_name(cls, value: Any) -> Any:
        if isinstance(value, str) and (name := RENAMED_STUDIES.get(value)):
            raise ValueError(f"{value} is now {name}; write study: {name}, in an entry named {name}-MODEL-BENCHMARK")
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> "StudyRun":
        users = {
            "compare": ("systems", "protocol"),
            "seeds": ("sizes", "seeds"),
            "cross_benchmark": ("benchmarks", "inputs"),
            "word_neurons": ("benchmarks", "inputs"),
            "generation": ("benchmarks", "inputs"),
            "calibration": (
                "benchmarks", "texts", "methods", "sparsities", "covering", "sequences", "seeds", "inputs",
            ),
            "bridge": ("sequences",),
            "choice": ("pool", "draws"),
        }  # fmt: skip
        for field in sorted(self.model_fields_set - {"study", "model", "benchmark", "test"}):
            if field not in users.get(self.study, ()):
                raise ValueError(f"{field}: the study {self.study} does not use it")
        for field in ("benchmarks", "systems", "sizes", "methods", "sparsities"):
            values = getattr(self, field)
            if len(set(values)) < len(values):
                raise ValueError(f"{field}: holds a value twice")
        if self.benchmark in self.benchmarks:
            raise ValueError(f"benchmarks: {self.benchmark} is the cell's own, which the study uses anyway")
        for name in self.texts:
            if not NAME.fullmatch(name) or name in (*RESERVED, *self.benchmarks):
                raise ValueError(
                    f"texts.{name}: must be a name of letters, digits, - and _ that no other calibration set has; "
                    f"{' and '.join(RESERVED)} are reserved"
                )
        if self.covering and set(self.methods) == {"magnitude"}:
            raise ValueError("covering: magnitude pruning has no calibration set; methods needs another one")
        if self.study in ("cross_benchmark", "word_neurons") and not self.benchmarks:
            raise ValueError(f"benchmarks: the study {self.study} needs some besides {self.benchmark}")
        return self

    @property
    def name(self) -> str:
        return f"{self.study}-{self.model}-{self.benchmark}"


class NsaRun(Strict):
    """Neuron Semantic Attribution of one cell.

    Attributes:
        rows: the number of test rows, from the first; their labels are not used.
        words: the number of influential words of each row.
        by: how they are found: `gradients` (of the model's answer) or `generation` (the model is asked for them).
        method: the weight pruning that is compared with the cell's pruning.
        sparsity: of the weight pruning.
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
    """One weight-pruned model, with either `sparsity` or `n_of_m`.

    Attributes:
        sparsity: the fraction of the weights of each matrix (wanda: of each row) that is removed.
        n_of_m: [2, 4] keeps 2 of every 4 consecutive weights of a row.
        permuted: ria with n_of_m: use RIA's channel permutation, so that the 4 weights need not be consecutive.
        calibration: a file of texts (JSONL with a `text` in each row, or plain text), or data/benchmarks/B for the
            train prompts of B; magnitude does not use it.
        sequences: the maximum number of calibration sequences.
        length: tokens of each sequence.
        seed: of the draw of the sequences.
    """

    method: Literal[WEIGHT_METHODS]  # type: ignore[valid-type]
    model: str
    sparsity: Fraction | None = None
    n_of_m: tuple[Count, Count] | None = None
    permuted: bool = False
    calibration: str
    sequences: Count = 8
    length: Count = 512
    seed: Seed = 0

    @model_validator(mode="after")
    def _one_target(self) -> "SparseRun":
        if (self.sparsity is None) == (self.n_of_m is None):
            raise ValueError("either sparsity or n_of_m is needed")
        if self.n_of_m and self.n_of_m[0] >= self.n_of_m[1]:
            raise ValueError("n_of_m: [n, m] needs 0 < n < m")
        if self.permuted and not (self.method == "ria" and self.n_of_m):
            raise ValueError("permuted: only ria with n_of_m has a channel permutation")
        return self
