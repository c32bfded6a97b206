"""How much does weight pruning depend on its calibration set (2503.01542)? Study `calibration`.

Every method x sparsity x calibration set on the cell's test rows, beside the unpruned and the DSM-pruned model. The
calibration sets are texts given by path (WikiText-2, C4), the cell's own train prompts (`own`), and those
of other benchmarks.
"""

from collections.abc import Sequence

from tasks.benchmarks.encoding import encode_prompt
from tasks.benchmarks.scoring import answers_unedited
from tasks.pipeline.errors import InputError
from tasks.pipeline.sources import existing
from tasks.sparsity.calibration import Calibration, from_documents, from_prompts, from_stream, read_texts
from tasks.sparsity.prune import Method, sparse
from tasks.studies.workshop import Record, Workshop, accuracy_record

OWN = "own"
LENGTH = 512  # tokens of a calibration sequence


def parts(workshop: Workshop) -> list[str]:
    """`method|sparsity|set`; magnitude looks at no set."""
    run = workshop.run
    sets = [*run.texts, OWN, *run.benchmarks]
    weights = [
        f"{method}|{sparsity}|{name}"
        for method in run.methods
        for sparsity in run.sparsities
        for name in (["none"] if method == "magnitude" else sets)
    ]
    return ["unpruned", "DSM", *weights]


def compute(workshop: Workshop, part: str) -> list[Record]:
    """The accuracy of one pruned model."""
    if part == "unpruned":
        return [workshop.base_record()]
    if part == "DSM":
        return [workshop.pruned_record("DSM pruning", workshop.chosen, **{"calibration set": "the ten examples"})]
    method, sparsity, name = part.split("|")
    found = None if name == "none" else _calibration(workshop, name)
    with sparse(workshop.loaded, found.sequences if found else [], _method(method), float(sparsity)):
        right = workshop.right(answers_unedited(workshop.stack, workshop.test.encoded))
    told = f"{name}, {len(found.sequences)} × {found.length}" if found else "none"
    more = {"method": method, "sparsity": float(sparsity), "calibration set": told}
    label = f"{method}, {float(sparsity):.0%}, {name}"
    return [accuracy_record(label, right, workshop.right(workshop.base), group=method, **more)]


def spreads(records: list[Record]) -> list[Record]:
    """The records, the last one of each method and sparsity with the spread of accuracy over the calibration sets."""
    found: list[Record] = []
    for record in records:
        key = record.more.get("method"), record.more.get("sparsity")
        same = [r for r in records if (r.more.get("method"), r.more.get("sparsity")) == key]
        values = [r.value for r in same if r.value is not None]
        if key[0] and len(values) > 1 and record is same[-1]:
            spread = round(max(values) - min(values), 3)
            record = Record(**vars(record) | {"more": record.more | {"spread over sets": spread}})
        found.append(record)
    return found


def _method(name: str) -> Method:
    methods: dict[str, Method] = {"magnitude": "magnitude", "wanda": "wanda", "ria": "ria", "sparsegpt": "sparsegpt"}
    return methods[name]


def _calibration(workshop: Workshop, name: str) -> Calibration:
    """The calibration set of this name, its first draw (seed 0).

    Raises:
        InputError: its texts or prompts are too few.
    """
    run, tokenizer, count = workshop.run, workshop.loaded.tokenizer, workshop.run.sequences
    if name in run.texts:
        field = f"studies.{run.name}.texts.{name}"
        texts = read_texts(existing(run.texts[name], field=field, root=workshop.cell.root))
        # C4 is documents; WikiText-2 is lines of articles, most shorter than a sequence.
        make = from_documents if _documents(texts) else from_stream
        return make(tokenizer, texts, name=name, count=count, length=LENGTH, seed=0)
    train = workshop.train if name == OWN else workshop.rows_of(name)[0]
    chats = train["chat"] if "chat" in train else [False] * len(train)
    prompts = [
        encode_prompt(tokenizer, prompt, workshop.stack.context, chat=bool(chat))
        for prompt, chat in zip(train["prompt"].head(count * 32), chats, strict=False)
    ]
    try:
        return from_prompts(prompts, name=name, count=count, length=LENGTH, seed=0)
    except InputError:
        # A benchmark with few train rows gives as many sequences as it has; the table says how many.
        filled = max(1, sum(map(len, prompts)) // LENGTH // 2)
        return from_prompts(prompts, name=name, count=min(filled, count), length=LENGTH, seed=0)


def _documents(texts: Sequence[str]) -> bool:
    return sum(len(text) > 2000 for text in texts) > len(texts) / 4
