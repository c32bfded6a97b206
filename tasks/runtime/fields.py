"""Types of the fields of params.yaml and of recipes."""

import re
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

# DVC refuses every other character in a stage name, and a name is also a folder and an MLflow model name.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Fraction = Annotated[float, Field(gt=0, lt=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Count = Annotated[int, Field(gt=0, lt=2**31)]


class Strict(BaseModel):
    """Refuses unknown fields; frozen, so that a step cannot change its own parameters."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
