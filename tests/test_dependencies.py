"""The dependencies in dvc.yaml: the code that a stage's step imports, and the files and settings that it reads."""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import grimp
import pytest
import yaml

from flows.study_flows import list_study
from tasks.pipeline.cell import open_cell
from tasks.runtime.files import read_json
from tasks.steps.data import store as data
from tasks.steps.evaluate import evaluate
from tasks.steps.model import store as model
from tasks.steps.nsa import nsa
from tasks.steps.prune import prune
from tasks.steps.report import report
from tasks.steps.sample import sample
from tasks.steps.score import score
from tasks.steps.search import search
from tasks.steps.sparsify import sparsify
from tasks.steps.study import study
from tasks.steps.transfer import transfer
from tests.steps.test_steps import write_project

REAL = Path(__file__).parents[1]
# Shared by all steps: paths, settings, files, journals, downloads. A change there would run all stages again and cannot
# change a result, or it changes params.yaml, too.
EXEMPT = ("tasks/pipeline/", "tasks/runtime/", "tasks/sources/")
STEPS = {
    "model": model, "data": data, "sample": sample, "score": score, "search": search, "prune": prune,
    "evaluate": evaluate, "transfer": transfer, "report": report, "nsa": nsa, "sparsify": sparsify, "study": study,
}  # fmt: skip
STUDIES = {
    "fractions": {},
    "transfer": {},
    "cross_benchmark": {"benchmarks": ["others"]},
    "calibration": {
        "benchmarks": ["others"], "texts": {"words": "words.txt"}, "methods": ["wanda"], "sparsities": [0.5],
        "sequences": 2, "seeds": 1,
    },
    "compare": {"systems": ["calibrated", "random_searched"]},
    "bridge": {"sequences": 2},
    "word_neurons": {"benchmarks": ["others"]},
    "seeds": {"sizes": [4], "seeds": 1},
    "choice": {"pool": 20, "draws": 2},
    "generation": {},
    "interactions": {},
    "timing": {},
}  # fmt: skip
STAGES = {
    name: stage.get("do", stage) for name, stage in yaml.safe_load((REAL / "dvc.yaml").read_text())["stages"].items()
}


def covered(path: str, deps: list[str]) -> bool:
    return any(path == dep or path.startswith(f"{dep}/") for dep in deps)


def closure(module: str) -> list[Path]:
    """The files of a step and of all project modules that it imports, at any place in them, without the exempt ones."""
    graph = grimp.build_graph("tasks", cache_dir=None)
    for name in [name for name in graph.modules if f"{name.replace('.', '/')}/".startswith(EXEMPT)]:
        graph.remove_module(name)  # the settings know the declarations of all packages
    names = {module, *graph.find_upstream_modules(module)}
    paths = [REAL.joinpath(*name.split(".")) for name in sorted(names)]
    return [path / "__init__.py" if path.is_dir() else path.with_suffix(".py") for path in paths]


def needed(module: str) -> list[str]:
    """The code of a step, and all other files of the directories from which some module reads files."""
    found = closure(module)
    reading = {path.parent for path in found if "__file__" in path.read_text()}
    lying = [path for folder in reading for path in folder.iterdir() if path.is_file() and path.suffix != ".py"]
    return [path.relative_to(REAL).as_posix() for path in found + lying]


def test_every_stage_is_looked_at():
    assert set(STAGES) == set(STEPS)


@pytest.mark.parametrize("name", STEPS)
def test_a_stage_depends_on_the_code_that_its_step_imports(name):
    (module,) = re.findall(r"-m (tasks\.steps\.\w+)", STAGES[name]["cmd"])
    deps = STAGES[name]["deps"]
    assert [path for path in needed(module) if not covered(path, deps)] == []


def test_what_is_imported_inside_a_function_and_what_lies_in_a_folder_is_seen():
    assert "tasks/comparison/finetuning.py" in needed("tasks.steps.study")
    assert {"tasks/evidence/report.html.j2", "tasks/evidence/report.css"} <= set(needed("tasks.steps.report"))
    assert {path.name for path in closure("tasks.steps.register")} > {"figures.py"}  # inside a function


def test_packages_compute_nothing():
    """No stage depends on their `__init__.py`. That of the steps only turns the garbage collector off."""
    for path in (REAL / "tasks").rglob("__init__.py"):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        names = {node.id for node in nodes if isinstance(node, ast.Name)}
        names |= {node.name for node in nodes if isinstance(node, ast.alias)}
        assert names <= ({"gc", "sys"} if path.parent.name == "steps" else set()), path


# -- what the steps read ----------------------------------------------------------------------------------------------

# Other values of every setting that a step may read; those that its stage names are restored.
OTHER = {
    "adaptation": {"size": 5, "seed": 3, "selection": "random", "unlabeled": 7},
    "attribution": {"method": "activation", "ranking": "absolute"},
    "search": {"strategy": "layer_subset", "fractions": [0.3], "criterion": "exact_match"},
    "evaluation": {"control_seeds": [7]},
    "precision": {"search": "bfloat16", "evaluate": "bfloat16", "transfer": "bfloat16"},
}
OTHER_BENCHMARK = {
    "prompt": "Other: {{ text }}", "options": [" a", " b"], "limits": {"test": 7, "transfer": 3}, "licence": "other"
}  # fmt: skip


def items():
    """(stage, key, values of the names in its entry)."""
    cell = {"model": "tiny", "benchmark": "reviews"}
    for name in STEPS:
        if name == "study":
            yield from ((name, f"{kind}-tiny-reviews", cell | {"study": kind}) for kind in STUDIES)
        elif name == "sparsify":
            yield name, "on-texts", cell | {"calibration": "words.txt"}
            yield name, "on-prompts", cell | {"calibration": "data/benchmarks/reviews"}
        else:
            yield name, "tiny-reviews", cell


ITEMS = list(items())


def filled(text, name, key, values):
    own = {"model": "tiny", "data": "reviews"}.get(name, "")
    return re.sub(r"\$\{(?:item\.)?(\w+)\}", lambda m: {"key": key, "item": own, **values}[m[1]], text)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A project in which every stage has run."""
    cell = write_project(tmp_path_factory.mktemp("project"))
    root = cell.root
    (root / "words.txt").write_text("a good film , not a bad one .\n" * 60)
    params = yaml.safe_load((root / "params.yaml").read_text())
    params["benchmarks"]["others"] = params["benchmarks"]["reviews"] | {"prompt": "Others say {{ text }} :"}
    params["precision"] = dict.fromkeys(("search", "evaluate", "transfer"), "float32")
    params["nsa"] = {"tiny-reviews": {"model": "tiny", "benchmark": "reviews", "rows": 12}}
    sparse = {"method": "wanda", "model": "tiny", "sparsity": 0.5, "sequences": 2, "length": 64}
    params["sparse"] = {key: sparse | {"calibration": v["calibration"]} for n, key, v in ITEMS if n == "sparsify"}
    params["studies"] = {
        f"{kind}-tiny-reviews": {"study": kind, "model": "tiny", "benchmark": "reviews", **run}
        for kind, run in STUDIES.items()
    }
    (root / "params.yaml").write_text(yaml.safe_dump(params))
    for kind in STUDIES:
        list_study(root, kind, "tiny", "reviews")
    for name, key, values in ITEMS:
        run(name, key, values, root)
    return root


def run(name, key, values, root):
    more = {"study": [values.get("study")], "sparsify": [key]}.get(name, [])
    STEPS[name](open_cell("tiny", "reviews", root), *more)


def with_others(params, declared):
    """The settings with other values for everything that is not declared."""
    benchmarks = {name: spec | OTHER_BENCHMARK for name, spec in params["benchmarks"].items()}
    found = yaml.safe_load(yaml.safe_dump(params | OTHER | {"benchmarks": benchmarks}))
    for name in declared:
        *way, last = name.split(".")
        of, to = params, found
        for part in way:
            of, to = of[part], to[part]
        to[last] = of[last]
    return found


def outputs(name, paths, root):
    """The bytes of outputs; of a study, which contains timings, its findings."""
    if name == "study":
        records = read_json(root / paths[0] / "result.json")["records"]
        for record in records:
            for measured in ("seconds", "peak GB"):
                record["more"].pop(measured, None)
        return [] if "timing" in paths[0] else records
    files = [
        file for path in paths for file in ([root / path] if (root / path).is_file() else (root / path).rglob("*"))
    ]
    return {file.relative_to(root): file.read_bytes() for file in files if file.is_file()}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "key", "values"), ITEMS, ids=[f"{name}@{key}" for name, key, _ in ITEMS])
def test_a_stage_needs_nothing_but_its_dependencies(finished, tmp_path, name, key, values):
    stage = STAGES[name]
    deps = [filled(dep, name, key, values) for dep in stage["deps"]]
    outs = [filled(out, name, key, values) for out in [*stage.get("outs", []), *stage.get("metrics", [])]]
    declared = [filled(param, name, key, values) for param in stage.get("params", [])]
    params = yaml.safe_load((finished / "params.yaml").read_text())
    changed = with_others(params, declared)
    # Files that a source or a study's `inputs` pins by a hash in params.yaml.
    pinned = ["source", "reviews.jsonl"] if name in ("model", "data", "study") else []
    if name == "study":
        pinned += ["words.txt"]
        changed["benchmarks"]["others"] = params["benchmarks"]["others"]
    for dep in [*pinned, *(dep for dep in deps if not dep.startswith("tasks/"))]:
        (tmp_path / dep).parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if (finished / dep).is_dir() else shutil.copy
        copy(finished / dep, tmp_path / dep)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(changed))
    run(name, key, values, tmp_path)
    assert outputs(name, outs, tmp_path) == outputs(name, outs, finished)


def test_steps_that_compute_with_no_tensors_do_not_import_pytorch() -> None:
    """This takes about three seconds."""
    steps = ("data", "installed", "prune", "report", "register", "promote")
    modules = [f"tasks.steps.{name}" for name in steps]
    code = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(name)\n"
        "    heavy = {'torch', 'transformers', 'mlflow'} & set(sys.modules)\n"
        "    assert not heavy, (name, heavy)\n"
    )
    subprocess.run([sys.executable, "-c", code, *modules], cwd=REAL, check=True, timeout=120)
