"""Pins of a source at its first use: the commit of a repository on the hub, the SHA-256 of a local file."""

import re
from dataclasses import dataclass
from pathlib import Path

from tasks.runtime.errors import InputError
from tasks.sources.fetch import FIRST_SHARD, hub_errors, sha256_joined, shard_names

HUB_ID = re.compile(r"(?P<id>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[\w./-]+))?", re.ASCII)
COMMIT = re.compile(r"[0-9a-f]{40}")
LATER_SHARD = re.compile(r".*-\d{5}-of-\d{5}\.gguf", re.DOTALL)


@dataclass(frozen=True)
class HubModel:
    """A model on the hub: the current commit of a revision, and the licence in its model card, if any."""

    commit: str
    licence: str


def ask_hub(repository: str, revision: str | None, *, field: str) -> HubModel:
    """The current commit of a branch or tag of a model's repository; None means the default branch.

    Raises:
        InputError: the hub cannot be reached, or the model or revision does not exist.
    """
    from huggingface_hub import HfApi

    try:
        info = HfApi().model_info(repository, revision=revision)
    except hub_errors() as error:
        raise InputError(field, f"cannot ask the hub for {repository}: {error}") from None
    if not COMMIT.fullmatch(info.sha or ""):
        raise InputError(field, f"the hub gives no commit of {repository}")
    licence = info.card_data.get("license") if info.card_data else None
    return HubModel(str(info.sha), licence if isinstance(licence, str) else "")


def sha256_of_gguf(path: Path, *, field: str) -> str:
    """SHA-256 of a GGUF file; for the first shard of a split model, of all shards concatenated.

    Raises:
        InputError: the file is a shard other than the first, or another shard is missing.
    """
    if LATER_SHARD.fullmatch(path.name) and not FIRST_SHARD.fullmatch(path.name):
        raise InputError(field, f"{path} is a shard of a split model; name the first one (-00001-of-..)")
    shards = [path.parent / name for name in shard_names(path.name)]
    if absent := next((shard for shard in shards if not shard.is_file()), None):
        raise InputError(field, f"{path} is split, and the shard {absent.name} is not beside it")
    return sha256_joined(shards)
