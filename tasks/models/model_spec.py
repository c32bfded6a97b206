"""The entry of a model in params.yaml."""

from typing import Any

from pydantic import field_validator

from tasks.runtime.fields import Strict
from tasks.sources.kinds import Source


class ModelSpec(Strict):
    """A model: its source and its licence.

    Attributes:
        licence: its identifier, such as `apache-2.0`, or its name.
        hub: the same model on the Hugging Face hub (organisation/name), for model cards; only if `source` is not it.
    """

    source: Source
    licence: str = ""
    hub: str = ""

    @field_validator("source")
    @classmethod
    def _dtype_is_for_gguf(cls, value: Any) -> Any:
        name = getattr(value, "path", getattr(value, "file", ""))
        if getattr(value, "dtype", None) and not name.endswith(".gguf"):
            raise ValueError("dtype: is for GGUF files; the weights of others stay in the type they have")
        return value
