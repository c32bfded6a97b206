"""What params.yaml declares of a model."""

from tasks.runtime.fields import Strict
from tasks.sources.kinds import Source


class ModelSpec(Strict):
    """A model: where it comes from, and under which terms.

    Attributes:
        licence: its identifier, such as `apache-2.0`, or its name.
        hub: the same model on the Hugging Face hub (organisation/name), for model cards; only if `source` is another.
    """

    source: Source
    licence: str = ""
    hub: str = ""
