"""The model card of an exported model: metadata that the Hugging Face hub reads, results, and how to use it."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

from tasks.evidence.verdict import method_name, percent, verdict
from tasks.method.recipe import Recipe, read_recipe
from tasks.method.scores import read_scores
from tasks.pipeline.cell import Cell
from tasks.runtime.files import read_json
from tasks.tracking.row_places import RowPlace, row_places

# The values of `license` that the hub takes (https://huggingface.co/docs/hub/repositories-licenses), without `other`.
_LICENCES = """
apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m
afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5
cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0
cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0
cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0
lgpl lgpl-2.1 lgpl-3.0 isc h-research intel-research lppl-1.3c ms-pl apple-ascl apple-amlr mpl-2.0 odc-by odbl
openmdw-1.0 openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr deepfloyd-if-license
fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 grok2-community gemma unknown
"""
LICENCES = frozenset(_LICENCES.split())


def model_card(cell: Cell) -> str:
    """README.md of the cell's exported model."""
    recipe, evaluation = read_recipe(cell.pruned), read_json(cell.evaluation)
    spec = cell.benchmark_spec
    base = _hub_id(cell)
    places = row_places(cell.model_dir, recipe)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("card.md.j2").render(
        metadata=_metadata(cell, evaluation).to_yaml(),
        recipe=recipe,
        base=f"`{base or cell.model}`",
        method=method_name(read_scores(cell.scores).header),
        verdict=verdict(read_json(cell.pruned), evaluation),
        systems=evaluation["systems"],
        n=evaluation["n"],
        percent=percent,
        rate=lambda system, value, error: f"{system[value]:.3f} ± {system[error]:.3f}",
        # As the model sees them; where rows differ, the template that makes them.
        options=json.dumps(evaluation["options"] or spec.options, ensure_ascii=False),
        prompt=spec.prompt,
        chat=f" (through the chat template, with the date {spec.chat})" if spec.chat else "",
        fence="`" * max(3, 1 + max(map(len, re.findall("`+", spec.prompt)), default=0)),
        rows=places[0].parameter.partition(f".{recipe.layer}.")[2].removesuffix(".weight"),
        snippet=snippet(recipe, places, base or "BASE"),
    )


def snippet(recipe: Recipe, places: Sequence[RowPlace], base: str) -> str:
    """A few lines of Python that apply pruned.json with `transformers` alone.

    Args:
        places: where the rows are in the base model.
        base: what to load: the name of a repository on the hub, or a directory.
    """
    lines = [
        "import json, pathlib",
        "from transformers import AutoModelForCausalLM",
        'recipe = json.loads(pathlib.Path("pruned.json").read_text())',
        f"model = AutoModelForCausalLM.from_pretrained({json.dumps(base)})",
    ]
    if (each := places[0].each) is not None:
        layers, _, parameter = places[0].parameter.partition(f".{recipe.layer}.")
        row = f"{each} + j % {each}" if recipe.projection == "up_proj" else f"j % {each}"
        return "\n".join(
            [
                *lines,
                f'experts, rows = zip(*((j // {each}, {row}) for j in recipe["neurons"]))',
                f'model.get_decoder().{layers}[recipe["layer"]].{parameter}.data[experts, rows] = 0',
            ]
        )
    for place in places:
        layers, _, parameter = place.parameter.partition(f".{recipe.layer}.")
        rows = f'[{place.start} + j for j in recipe["neurons"]]' if place.start else 'recipe["neurons"]'
        lines.append(f'model.get_decoder().{layers}[recipe["layer"]].{parameter}.data[{":, " * place.dim}{rows}] = 0')
    return "\n".join(lines)


def _hub_id(cell: Cell) -> str:
    """The base model on the hub; empty if params.yaml does not name it."""
    source = cell.model_spec.source
    return source.id if source.kind == "hub" else cell.model_spec.hub


def _metadata(cell: Cell, evaluation: dict[str, Any]) -> Any:
    """The metadata of the card, as `huggingface_hub.ModelCardData`."""
    from huggingface_hub import EvalResult, ModelCardData

    source = cell.benchmark_spec.train.source
    dataset, config = (source.id, source.config) if source.kind == "hub" else (None, None)
    licence, licence_name = _licence(cell.model_spec.licence)
    base, pruned, n = evaluation["systems"]["base"], evaluation["systems"]["pruned"], evaluation["n"]
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=dataset or cell.benchmark,
            dataset_name=cell.benchmark,
            dataset_config=config,
            metric_type=name,
            metric_name=f"{name} (n = {n}; base model {base[name]:.3f})",
            metric_value=round(pruned[name], 4),
            metric_args={"n": n, "stderr": round(pruned[error], 4), "base": round(base[name], 4)},
        )
        for name, error in (
            ("accuracy", "stderr"), ("exact_match", "exact_match_stderr"), ("acc_norm", "acc_norm_stderr"),
        )
    ]  # fmt: skip
    return ModelCardData(
        base_model=_hub_id(cell) or None,
        datasets=dataset,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["pruned", "dsm"],
        model_name=cell.name,
        eval_results=results,
        metrics=["accuracy", "exact_match"],
        license=licence,
        license_name=licence_name,
    )


def _licence(text: str) -> tuple[str | None, str | None]:
    """The licence as the hub wants it: one of its identifiers, or `other` and a name."""
    identifier = text.strip().lower().replace(" ", "-")
    if not identifier or identifier in LICENCES:
        return identifier or None, None
    return "other", re.sub(r"[^a-z0-9.]+", "-", identifier).strip("-")
