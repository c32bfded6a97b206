"""What params.yaml declares of a model."""

from tasks.runtime.fields import Strict
from tasks.sources.kinds import Source


class ModelSpec(Strict):
    """A model: where it comes from, and under which terms."""

    source: Source
    licence: str = ""
