"""Memory and time of the steps on large models, from operation counts: the tables of docs/scale.md.

`python -m bench.scale` prints them. Nothing is measured here; that page says what each number is based on.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

GB = 1e9


@dataclass(frozen=True)
class Shape:
    """What the cost of a decoder depends on.

    >>> SHAPES["Llama-3.1-8B"].layer_parameters
    218103808
    >>> round(SHAPES["Llama-3.1-8B"].parameters / 1e9, 2)
    8.03
    >>> round(SHAPES["SmolLM2-135M"].parameters / 1e6, 1)
    134.5
    """

    layers: int
    d_model: int
    d_ff: int
    key_width: int  # key heads x width of a head
    vocabulary: int
    tied: bool = False

    @property
    def layer_parameters(self) -> int:
        """Weights that a token meets in one layer: attention and gated MLP (norms left out)."""
        return 2 * self.d_model**2 + 2 * self.d_model * self.key_width + 3 * self.d_model * self.d_ff

    @property
    def parameters(self) -> int:
        return self.layers * self.layer_parameters + (1 if self.tied else 2) * self.vocabulary * self.d_model


SHAPES = {
    "SmolLM2-135M": Shape(30, 576, 1536, 192, 49152, tied=True),
    "Qwen2.5-Coder-1.5B": Shape(28, 1536, 8960, 256, 151936, tied=True),
    "Llama-3.1-8B": Shape(32, 4096, 14336, 1024, 128256),
    "Llama-3.1-70B": Shape(80, 8192, 28672, 1024, 128256),
}


@dataclass(frozen=True)
class Job:
    """How much is asked for. The defaults are the settings of the default job, but for what is assumed.

    Attributes:
        tokens: of a row, after what all rows share: assumed.
        nodes: gradient evaluations that a layer gets on average: assumed; max_nodes bounds them.
        systems: base, pruned and random models that evaluate compares.
    """

    rows: int = 10
    tokens: int = 100
    nodes: int = 8
    fractions: int = 8
    test: int = 400
    transfer: int = 100
    systems: int = 7


def passes(layers: int, job: Job, searched: Sequence[int] | None = None) -> dict[str, float]:
    """Forward passes of one row through all layers, of each step; a backward pass counts as one.

    Only activations take a gradient, so a backward pass multiplies as often as its forward pass. A run from layer l
    goes through layers - l of them: (layers + 1) / 2 on average. The layer that is edited is shared by all edits of it,
    so that is (layers - 1) / 2. `evaluate` edits one layer, taken in the middle.

    Args:
        searched: how many fractions each layer gets in the search; default all.

    >>> {step: round(n) for step, n in passes(30, Job()).items()}
    {'score': 2350, 'search': 1170, 'transfer': 11700, 'evaluate': 1800}
    """
    fractions = searched or [job.fractions] * layers
    suffix = [(layers - 1 - layer) / layers for layer in range(layers)]
    grid = sum(p * part for p, part in zip(fractions, suffix, strict=True))
    whole = job.fractions * sum(suffix)
    return {
        "score": job.rows * (3 + 2 * job.nodes * sum(suffix)),
        "search": job.rows * (1 + grid),
        "transfer": job.transfer * (1 + whole),
        "evaluate": job.test * (1 + job.systems * suffix[(layers - 1) // 2]),
    }


def coarse_to_fine(layers: int, fractions: int) -> list[int]:
    """Fractions per layer that the strategy of this name looks at, if the best layer lies in the middle.

    >>> sum(coarse_to_fine(32, 8)), 32 * 8
    (77, 256)
    """
    counts = [0] * layers
    coarse = range(min(2, layers - 1), layers, 4)
    for layer in coarse:
        counts[layer] = 3
    best = min(coarse, key=lambda layer: abs(layer - layers // 2))
    for layer in range(max(0, best - 3), min(layers, best + 4)):
        counts[layer] = fractions
    return counts


def layer_subset(layers: int, fractions: int) -> list[int]:
    """Fractions per layer if a quarter of the layers is searched, spread evenly.

    >>> sum(layer_subset(32, 8))
    64
    """
    return [fractions if layer % 4 == 2 else 0 for layer in range(layers)]


def flop(shape: Shape, job: Job) -> dict[str, float]:
    """Floating point operations of each step: two for each weight and token; attention itself left out (see page)."""
    row = 2.0 * shape.layers * shape.layer_parameters * job.tokens
    return {step: count * row for step, count in passes(shape.layers, job).items()}


def kept_per_token(shape: Shape) -> int:
    """Bytes of float32 that a backward pass keeps of each token: the model of `tasks.models.memory.Room.graph`."""
    return int(shape.layers * (7.5 * shape.d_model + 3 * shape.d_ff) * 4)


def stored_per_token(shape: Shape) -> int:
    """Bytes of float32 of what enters the layers, of each token: what a sweep stores where it keeps no graph.

    >>> stored_per_token(SHAPES["Llama-3.1-8B"])
    524288
    """
    return shape.layers * shape.d_model * 4


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def duration(seconds: float) -> str:
    """
    >>> duration(30), duration(1200), duration(90000)
    ('30 s', '20 min', '25 h')
    """
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}" if seconds >= 10 * size else f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def model_table() -> str:
    rows = []
    for name, s in SHAPES.items():
        shape = [str(s.layers), str(s.d_model), str(s.d_ff), str(s.key_width), str(s.vocabulary)]
        rows.append([name, *shape, f"{s.layer_parameters / 1e6:,.1f} M", f"{s.parameters / 1e9:,.2f} B"])
    head = ["model", "layers", "d_model", "d_ff", "key width", "vocabulary", "weights of a layer", "parameters"]
    return table(head, rows)


def pass_table(job: Job) -> str:
    rows = []
    for name, s in SHAPES.items():
        counts = passes(s.layers, job)
        few = [passes(s.layers, job, way(s.layers, job.fractions))["search"] for way in (coarse_to_fine, layer_subset)]
        rows.append([name, *(f"{counts[step]:,.0f}" for step in counts), *(f"{count:,.0f}" for count in few)])
    return table(
        ["model", "score", "search", "transfer", "evaluate", "search, coarse_to_fine", "search, layer_subset"], rows
    )


def memory_table(pack: int = 512) -> str:
    rows = [
        [
            name,
            f"{s.parameters * 2 / GB:,.1f}",
            f"{s.parameters * 4 / GB:,.1f}",
            f"{s.layer_parameters * 4 / GB:,.2f}",
            f"{kept_per_token(s) * pack / GB:,.1f}",
            f"{stored_per_token(s) * pack / GB:,.2f}",
        ]
        for name, s in SHAPES.items()
    ]
    head = [
        "model", "weights in bfloat16, GB", "in float32, GB", "a layer in float32, GB",
        f"graphs of {pack} tokens, GB", f"stored inputs of {pack} tokens, GB",
    ]  # fmt: skip
    return table(head, rows)


def time_table(job: Job, speeds: Sequence[tuple[str, str, float]]) -> str:
    """`speeds`: a model, what it runs at in words, and that in FLOP/s."""
    rows = []
    for name, label, speed in speeds:
        seconds = [count / speed for count in flop(SHAPES[name], job).values()]
        rows.append([name, label, *map(duration, seconds), duration(sum(seconds))])
    return table(["model", "sustained", *flop(SHAPES["SmolLM2-135M"], job), "together"], rows)


LARGE = ("Llama-3.1-8B", "Llama-3.1-70B")
SPEEDS = [
    *((name, "80 GFLOP/s", 80e9) for name in ("SmolLM2-135M", "Qwen2.5-Coder-1.5B", "Llama-3.1-8B")),
    *((name, f"{speed} TFLOP/s", speed * 1e12) for name in LARGE for speed in (30, 150)),
]


def tables() -> list[str]:
    """All tables of the page, in its order."""
    return [model_table(), pass_table(Job()), memory_table(), time_table(Job(), SPEEDS)]


if __name__ == "__main__":
    print("\n\n".join(tables()))
