"""None of our code loads a pickle, and every server that is started listens on 127.0.0.1."""

import ast
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError

from tasks.models.loading import load
from tasks.runtime.errors import InputError
from tasks.runtime.yamltext import read_yaml
from tests.flows.stand_in_project import REAL
from tests.tiny import save_tiny

SOURCES = [path for name in ("flows", "tasks", "bench") for path in (REAL / name).rglob("*.py")]
# Functions that unpickle, always or by default.
MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
CALLS = {
    "torch.load",
    "np.load",
    "numpy.load",
    "pd.read_pickle",
    "pandas.read_pickle",
    "yaml.full_load",
    "yaml.unsafe_load",
}


def dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def offences(text: str) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.partition(".")[0] in MODULES]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in MODULES:
            found.append(str(node.module))
        elif isinstance(node, ast.Call):
            if dotted(node.func) in CALLS:
                found.append(dotted(node.func))
            for keyword in node.keywords:
                allowed = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
                if keyword.arg in ("trust_remote_code", "allow_pickle") and not allowed:
                    found.append(str(keyword.arg))
    return found


def test_the_check_finds_what_it_looks_for() -> None:
    for text in (
        "import pickle",
        "from joblib import load",
        "torch.load(p)",
        "np.load(p)",
        "f(trust_remote_code=True)",
    ):
        assert offences(text), text
    assert not offences("f(trust_remote_code=False)\nyaml.safe_load(t)")


def test_no_source_unpickles() -> None:
    assert len(SOURCES) > 50
    found = {str(path.relative_to(REAL)): offences(path.read_text(encoding="utf-8")) for path in SOURCES}
    assert {path: names for path, names in found.items() if names} == {}


def test_yaml_makes_no_objects() -> None:
    with pytest.raises(InputError, match="could not determine a constructor"):
        read_yaml("a: !!python/object/apply:os.getpid []", field="params.yaml")


def test_models_are_loaded_with_no_remote_code_and_from_safetensors() -> None:
    """Every call that loads a model or tokenizer passes the option itself: the default may change."""
    calls = [
        node
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and dotted(node.func).endswith(".from_pretrained")
    ]
    ours = [call for call in calls if dotted(call.func).startswith("Auto")]
    assert len(ours) >= 4
    assert all("trust_remote_code" in {keyword.arg for keyword in call.keywords} for call in ours)


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path(self.mark),)  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors", "model.pt", "training_args.bin"])
def test_a_pickle_in_a_model_directory_is_not_run(tmp_path: Path, name: str) -> None:
    mark = tmp_path / "ran"
    bomb = Bomb()
    bomb.mark = str(mark)  # type: ignore[attr-defined]
    pickle.loads(pickle.dumps(bomb))
    assert mark.exists(), "the bomb is none"
    mark.unlink()
    directory = save_tiny(tmp_path / "model")
    if name != "model.safetensors":
        (directory / "model.safetensors").rename(directory / "model.safetensors.old")
    torch.save(bomb, directory / name)
    with pytest.raises((InputError, SafetensorError)):
        load(directory)
    np.save(directory / "x.npy", np.array([bomb], dtype=object), allow_pickle=True)
    assert not mark.exists()


def test_servers_listen_on_this_machine_only() -> None:
    """The code has no other address, and MLflow's server is started with this one."""
    for path in SOURCES:
        text = path.read_text(encoding="utf-8")
        assert "0.0.0.0" not in text, path
        if '"server"' in text:
            assert '"--host", "127.0.0.1"' in text, path
