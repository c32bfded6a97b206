"""The cells of params.yaml: `pipeline.models` x `pipeline.benchmarks`."""

import io
from pathlib import Path

from filelock import FileLock

from tasks.pipeline.files import write_text
from tasks.pipeline.settings import PARAMS, parse_settings


def list_cell(root: Path, model: str, benchmark: str) -> list[str]:
    """Adds the two declared names to the lists of the pipeline that lack them; comments and layout stay.

    Returns:
        What was added, such as "pipeline.benchmarks: boolq".
    """
    from ruamel.yaml import YAML

    path = root / PARAMS
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 2**31  # a prompt stays on its line
    scratch = root / "data" / "scratch"
    scratch.mkdir(parents=True, exist_ok=True)
    with FileLock(scratch / f"{PARAMS}.lock"):  # of two runs that start at once, neither loses the other's name
        document = yaml.load(path.read_text(encoding="utf-8"))
        added = []
        for section, name in (("models", model), ("benchmarks", benchmark)):
            names = document["pipeline"][section]
            if name not in names:
                names.append(name)
                added.append(f"pipeline.{section}: {name}")
        if added:
            text = io.StringIO()
            yaml.dump(document, text)
            parse_settings(text.getvalue())  # refuses two cells of one name before anything is written
            write_text(path, text.getvalue())
    return added
