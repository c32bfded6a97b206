"""The size of a model, from files that can be read before its weights are loaded."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tasks.models.model_spec import ModelSpec
from tasks.models.projections import expert_width, first_width
from tasks.runtime.errors import InputError
from tasks.runtime.files import read_json
from tasks.sources.kinds import HubSource, PathSource

HIDDEN, HEADS = ("hidden_size", "n_embd"), ("num_attention_heads", "n_head")  # the second name is GPT-2's
WITHOUT_GATE = ("starcoder2", "gpt_neox", "nemotron", "biogpt")  # these have an `intermediate_size`, but no gate


@dataclass(frozen=True)
class ModelSize:
    """The dimensions that the cost of a forward pass depends on."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    key_value_heads: int
    gated: bool = True

    @property
    def multiply_adds(self) -> int:
        """For one token in a forward pass, without the output embedding, which only the last token of a prompt needs.

        It is also the number of weights of the decoder's matrices. In a mixture of experts, a token is routed to only k
        experts: `intermediate` is k * d_expert, and the router is not counted.
        """
        attention = 2 * self.hidden * self.hidden * (self.heads + self.key_value_heads) // self.heads
        return self.layers * (attention + (3 if self.gated else 2) * self.hidden * self.intermediate)


def model_size(spec: ModelSpec, fetched: Path, root: Path, *, field: str) -> ModelSize | None:
    """The size of a model that is fetched, local, or in the cache of the Hugging Face hub; None if it is elsewhere.

    Args:
        fetched: the directory that the step `model` writes.
        field: the model's field in params.yaml, for messages.

    Raises:
        InputError: a dimension is missing in the files.
    """
    if (fetched / "config.json").exists():
        return _of_config(fetched / "config.json", field=field)
    if isinstance(spec.source, PathSource):
        path = root / Path(spec.source.path).expanduser()
        if not path.exists():  # DVC's cache may have the model that was made from it
            return None
        return _of_config(path / "config.json", field=field) if path.is_dir() else _of_gguf(path, field=field)
    if isinstance(spec.source, HubSource):
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(spec.source.id, "config.json", revision=spec.source.revision)
        return _of_config(Path(cached), field=field) if isinstance(cached, str) else None
    return None


def _of_config(path: Path, *, field: str) -> ModelSize:
    try:
        config = read_json(path)
    except ValueError as error:
        raise InputError(field, f"{path} is not JSON: {error}") from None
    config = config.get("text_config", config)
    hidden, heads = (config.get(name, config.get(older)) for name, older in (HIDDEN, HEADS))
    width = first_width(config.get)
    if (experts := expert_width(config.get)) is not None:
        width = experts[0] * experts[1]
    if width is None and "n_inner" in config and isinstance(hidden, int):
        width = 4 * hidden
    size = _checked(
        {
            "num_hidden_layers": config.get("num_hidden_layers", config.get("n_layer")),
            "hidden_size": hidden,
            "intermediate_size": width,
            "num_attention_heads": heads,
            "num_key_value_heads": config.get("num_key_value_heads") or heads,
        },
        path,
        field,
    )
    return replace(size, gated="intermediate_size" in config and config.get("model_type") not in WITHOUT_GATE)


def _of_gguf(path: Path, *, field: str) -> ModelSize:
    from tasks.models.gguf_header import check_header

    try:
        numbers = check_header(path).numbers
    except ValueError as error:
        raise InputError(field, f"{path} is not a GGUF file: {error}") from None
    by_name = {name.partition(".")[2]: number for name, number in numbers.items()}  # without the architecture
    heads = by_name.get("attention.head_count")
    names = ("block_count", "embedding_length", "feed_forward_length")
    return _checked(
        {name: by_name.get(name) for name in names}
        | {"attention.head_count": heads, "attention.head_count_kv": by_name.get("attention.head_count_kv") or heads},
        path,
        field,
    )


def _checked(values: dict[str, Any], path: Path, field: str) -> ModelSize:
    for name, value in values.items():
        if not isinstance(value, int) or value < 1:
            raise InputError(field, f"{path} has no {name}, a whole number from 1, but {value!r}")
    return ModelSize(*values.values())
