"""The exported model for users without this project: the card, the recipe in plain transformers, the hub."""

import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import HfApi, ModelCard
from transformers import AutoModelForCausalLM

from tasks.evidence.verdict import verdict
from tasks.method.recipe import read_recipe
from tasks.method.silence import silenced
from tasks.models.hashing import sha256_directory
from tasks.pipeline.cell import Cell, open_cell
from tasks.runtime.errors import InputError
from tasks.runtime.files import read_json, write_json
from tasks.tracking.export import apply, export
from tasks.tracking.hub import push
from tasks.tracking.model_card import LICENCES, _licence, model_card, snippet
from tasks.tracking.row_places import row_places
from tests.cells import servable_cell
from tests.tiny import FAMILIES, MIXTURES, SIZES, UNGATED, save_tiny

TOKENS = torch.arange(2, 14)[None]
REPOSITORY = Path(__file__).parents[2]
DOCS = REPOSITORY / "docs" / "recipes.md"


@pytest.fixture(scope="module")
def master(tmp_path_factory: pytest.TempPathFactory) -> Cell:
    return servable_cell(tmp_path_factory.mktemp("project"))


def changed(cell: Cell, **model: Any) -> Cell:
    """The cell with other fields of its model in params.yaml."""
    params = yaml.safe_load((cell.root / "params.yaml").read_text())
    params["models"]["tiny"] |= model
    path = cell.root / "changed" / "params.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump(params))
    if not (path.parent / "data").exists():
        (path.parent / "data").symlink_to(cell.root / "data")
    return open_cell(root=path.parent)


def plain(directory: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


def blocks(text: str) -> list[str]:
    """The Python code of a page."""
    return re.findall(r"```python\n(.*?)\n```", text, re.DOTALL)


def test_the_hub_reads_the_metadata(master: Cell) -> None:
    hub = {"kind": "hub", "id": "org/base", "revision": "0" * 40}
    card = ModelCard(model_card(changed(master, source=hub)))
    data = card.data
    assert (data.license, data.base_model, data.library_name) == ("apache-2.0", "org/base", "transformers")
    assert data.pipeline_tag == "text-generation"
    evaluation = read_json(master.evaluation)
    pruned, base = evaluation["systems"]["pruned"], evaluation["systems"]["base"]
    results = {result.metric_type: result for result in data.eval_results}
    assert set(results) == {"accuracy", "exact_match", "acc_norm"}
    for name, result in results.items():
        assert result.metric_value == pytest.approx(pruned[name], abs=5e-5)
        assert result.metric_args["n"] == evaluation["n"] == 20
        assert result.metric_args["base"] == pytest.approx(base[name], abs=5e-5)
        assert result.dataset_name == "reviews"
    assert ModelCard(str(card)).data.to_dict() == data.to_dict()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Apache-2.0", ("apache-2.0", None)),
        ("gemma", ("gemma", None)),
        ("CC BY 4.0", ("cc-by-4.0", None)),
        ("", (None, None)),
        ("Acme Research Licence, 2024", ("other", "acme-research-licence-2024")),
    ],
)
def test_licences_are_identifiers_of_the_hub(text: str, expected: tuple[str | None, str | None]) -> None:
    assert _licence(text) == expected
    assert expected[0] in LICENCES | {None, "other"}


def test_a_model_without_a_page_on_the_hub_has_no_base_model(master: Cell) -> None:
    assert ModelCard(model_card(changed(master))).data.base_model is None
    assert ModelCard(model_card(changed(master, hub="org/same"))).data.base_model == "org/same"


def test_the_card_says_what_the_verdict_says(master: Cell) -> None:
    told = verdict(read_json(master.pruned), read_json(master.evaluation))
    text = model_card(master)
    for sentence in (told.headline, told.sentence, told.control):
        assert sentence in text
    systems = read_json(master.evaluation)["systems"]
    assert f"| pruned | {systems['pruned']['accuracy']:.3f} ± " in text
    assert f"{systems['random']['exact_match']:.3f} ± " in text
    assert "20 held-out rows of reviews" in text
    assert "{{ text }}" in text
    assert "None" not in text


def test_a_prompt_with_a_fence_of_its_own_stays_in_its_block(master: Cell) -> None:
    params = yaml.safe_load((master.root / "params.yaml").read_text())
    params["benchmarks"]["reviews"]["prompt"] = "```\n{{ text }}\n```\n{{ '</b>' }}"
    root = master.root / "fenced"
    root.mkdir()
    (root / "params.yaml").write_text(yaml.safe_dump(params))
    (root / "data").symlink_to(master.root / "data")
    assert "\n````\n```\n{{ text }}\n```\n{{ '</b>' }}\n````\n" in model_card(open_cell(root=root))


@pytest.mark.parametrize(
    ("family", "projection"),
    [
        *((family, p) for family in ("llama", "phi3", "gemma3", "olmo2") for p in ("gate_proj", "up_proj")),
        *((family, p) for family in UNGATED for p in ("gate_proj", "down_proj")),
        *((family, p) for family in MIXTURES for p in ("gate_proj", "up_proj")),
    ],
)
def test_a_few_lines_of_the_card_make_the_exported_weights(
    master: Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, projection: str
) -> None:
    base = save_tiny(tmp_path / "base", family)
    recipe = read_json(master.pruned) | {"base_sha256": sha256_directory(base), "projection": projection}
    if projection == "down_proj":
        recipe |= {"d_ff": SIZES["hidden_size"], "neurons": [0, 7, 31]}
    write_json(tmp_path / "pruned.json", recipe)
    apply(tmp_path / "pruned.json", base, tmp_path / "applied")
    recipe = read_recipe(tmp_path / "pruned.json")
    code = snippet(recipe, row_places(base, recipe), str(base))
    assert code.count("\n") == (4 if family in FAMILIES else 5)  # one more for the biases, or to count experts
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(code, names)
    expected = plain(tmp_path / "applied").state_dict()
    found = names["model"].state_dict()
    assert set(found) == set(expected)
    assert all(torch.equal(found[name].float(), expected[name]) for name in expected)


def test_the_code_of_an_exported_directory_runs(master: Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export(master, tmp_path / "exported")
    use, from_base = blocks((tmp_path / "exported" / "README.md").read_text())
    monkeypatch.chdir(tmp_path / "exported")
    names: dict[str, Any] = {}
    exec(use, names)
    assert names["tokenizer"]("good")["input_ids"]
    exported = plain(tmp_path / "exported")
    exec(from_base.replace('"BASE"', repr(str(master.model_dir))), names)
    torch.testing.assert_close(names["model"](TOKENS).logits, exported(TOKENS).logits, atol=0, rtol=0)


def test_the_code_of_the_documentation_runs(master: Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs docs/recipes.md on a project whose model and recipes have the names of the page."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base").symlink_to(master.model_dir)
    recipe = read_json(master.pruned)
    write_json(tmp_path / "pruned.json", recipe)
    write_json(tmp_path / "other" / "pruned.json", recipe | {"layer": 0})
    names: dict[str, Any] = {}
    for block in blocks(DOCS.read_text()):
        exec(block, names)
    apply(tmp_path / "pruned.json", master.model_dir, tmp_path / "applied", tmp_path / "other" / "pruned.json")
    assert names["after"] == names["before"]
    torch.testing.assert_close(names["both"], plain(tmp_path / "applied")(names["tokens"]).logits, atol=0, rtol=0)


def test_several_recipes_prune_what_each_of_them_prunes(master: Cell, tmp_path: Path) -> None:
    first = read_json(master.pruned)
    write_json(tmp_path / "a.json", first)
    write_json(tmp_path / "b.json", first | {"layer": 0, "neurons": [1, 5]})
    apply(tmp_path / "a.json", master.model_dir, tmp_path / "out", tmp_path / "b.json")
    model, both = plain(master.model_dir), plain(tmp_path / "out")
    with silenced(model, read_recipe(tmp_path / "a.json"), read_recipe(tmp_path / "b.json")), torch.no_grad():
        torch.testing.assert_close(model(TOKENS).logits, both(TOKENS).logits, atol=0, rtol=0)
    assert {path.name for path in (tmp_path / "out").glob("*.json")} >= {"pruned-layer-2.json", "pruned-layer-0.json"}
    assert read_recipe(tmp_path / "out" / "pruned-layer-0.json").neurons == [1, 5]


def test_recipes_that_do_not_go_together_are_refused(master: Cell, tmp_path: Path) -> None:
    first = read_json(master.pruned)
    write_json(tmp_path / "a.json", first)
    write_json(tmp_path / "same.json", first | {"neurons": [7]})
    write_json(tmp_path / "other.json", first | {"layer": 0, "base_sha256": "0" * 64})
    (tmp_path / "sparse.json").write_text("{}")
    for name, told in (
        ("same.json", r"same\.json: layer: 2 is pruned by .*a\.json, too; name one of the two$"),
        ("other.json", r"other\.json: base_sha256: is not that of .*a\.json: the recipes are of different models$"),
        ("sparse.json", r"sparse\.json: is of a weight-pruned model and cannot be combined with other recipes$"),
    ):
        with pytest.raises(InputError, match=told):
            apply(tmp_path / "a.json", master.model_dir, tmp_path / "out", tmp_path / name)
    assert not (tmp_path / "out").exists()


def test_a_plain_model_in_memory_is_silenced_and_comes_back(master: Cell) -> None:
    model = plain(master.model_dir)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    recipe = read_recipe(master.pruned)
    with silenced(model, recipe):
        changed = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])]
        assert changed == [f"model.layers.{recipe.layer}.mlp.gate_proj.weight"]
        assert model.generate(TOKENS, max_new_tokens=2, pad_token_id=0).shape == (1, 14)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


class Hub:
    """A fake of the hub: records the requests, and the files that would have been sent."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.asked: list[Any] = []
        self.files: set[str] = set()
        monkeypatch.setattr(HfApi, "create_repo", lambda _, name, **how: self.asked.append((name, how)))
        monkeypatch.setattr(HfApi, "upload_folder", self.upload)

    def upload(self, **asked: Any) -> str:
        folder = Path(asked.pop("folder_path"))
        self.files = {path.name for path in folder.iterdir()}
        ModelCard.load(folder / "README.md")
        self.asked.append(asked)
        return "https://hub.example/org/name/commit/1"


def test_push_uploads_the_export_once(master: Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub(monkeypatch)
    assert push(master, "org/name") == "https://hub.example/org/name/commit/1"
    assert hub.asked == [
        ("org/name", {"private": True, "exist_ok": True}),
        {"repo_id": "org/name", "commit_message": "tiny pruned for reviews"},
    ]
    assert hub.files >= {"README.md", "config.json", "model.safetensors", "pruned.json", "tokenizer.json"}
    assert not list(master.scratch.glob("tmp*"))
    push(master, "org/name", tmp_path / "kept")
    assert {path.name for path in (tmp_path / "kept").iterdir()} == hub.files


@pytest.mark.parametrize("name", ["name", "a/b/c", "org/na me", "org/--x"])
def test_what_is_no_name_of_a_repository_is_one_line(master: Cell, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    hub = Hub(monkeypatch)
    with pytest.raises(InputError, match=r"^push: ") as refused:
        push(master, name)
    assert "\n" not in str(refused.value)
    assert hub.asked == []


def test_a_hub_that_cannot_be_reached_is_one_line(
    master: Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.HfApi", partial(HfApi, endpoint="http://127.0.0.1:9", token="hf_none"))
    with pytest.raises(InputError, match=r"^push: org/name: .*refused$"):
        push(master, "org/name", tmp_path / "kept")
