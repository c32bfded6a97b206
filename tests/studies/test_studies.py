"""Every study on a tiny cell, through files as DVC runs it, against the results of the cell's own steps."""

import copy
import json
from collections import Counter

import numpy as np
import pytest
import torch
import yaml
from safetensors.numpy import load_file

from flows.study_flows import list_study
from tasks.benchmarks.scoring import answers_unedited, answers_without
from tasks.benchmarks.table import exact_matches
from tasks.evidence.study_pages import fingerprint, write_page
from tasks.evidence.study_tables import plot, table
from tasks.method.adaptation_set import draw
from tasks.method.algorithm import score_rows
from tasks.method.attribute import Attributor
from tasks.method.criteria import CRITERIA
from tasks.method.grid import Grid
from tasks.method.neurons import prominent_neurons
from tasks.method.recipe import read_recipe
from tasks.method.silence import Neurons, silenced
from tasks.models.loading import load
from tasks.pipeline.cell import open_cell
from tasks.pipeline.names import STUDIES, SYSTEMS
from tasks.runtime.errors import InputError
from tasks.runtime.files import read_json, sha256_file
from tasks.semantics.influence import influential_words
from tasks.semantics.permutation import halves
from tasks.semantics.words import own_words
from tasks.sparsity.calibration import from_texts, read_texts
from tasks.sparsity.coverage import facility_location, input_norms
from tasks.sparsity.weight_pruning import sparse
from tasks.steps.data import store as data
from tasks.steps.model import store as model
from tasks.steps.study import study
from tasks.studies import adapting, calibrating, choosing, generating, word_neurons
from tasks.studies.bridging import linked
from tasks.studies.catalogue import STUDIES as CATALOGUE
from tasks.studies.context import StudyContext
from tests.comparison.fit_data import assert_untouched, fit_data, state
from tests.method.test_grid import naive
from tests.steps.test_steps import STEPS, WORDS, write_project
from tests.tiny import rows as gate_rows
from tests.tiny import tiny_tokenizer

RUNS = {
    "compare": {"systems": ["calibrated", "random", "random_searched", "sft", "caa"]},
    "seeds": {"sizes": [4, 6], "seeds": 2},
    "cross_benchmark": {"benchmarks": ["others"]},
    "bridge": {"sequences": 2},
    "generation": {"benchmarks": ["free"]},
    "word_neurons": {"benchmarks": ["others"]},
    "choice": {"pool": 20, "draws": 12},
    "calibration": {
        "benchmarks": ["others"],
        "texts": {"words": "words.txt"},
        "sequences": 2,
        "sparsities": [0.5],
        "seeds": 2,
    },
}


def declare(cell, **runs):
    """The cell with studies in its params.yaml, and a second benchmark."""
    path = cell.root / "params.yaml"
    params = yaml.safe_load(path.read_text())
    params["benchmarks"]["others"] = params["benchmarks"]["reviews"] | {"prompt": "Others say {{ text }} :"}
    source = {"kind": "path", "path": "free.jsonl", "sha256": sha256_file(cell.root / "free.jsonl")}
    params["benchmarks"]["free"] = {
        "train": {"source": source, "gold": "any"}, "test": {"split": 40, "seed": 0}, "prompt": "{{ question }} :",
        "options": "{{ answers }}", "limits": {"test": 30, "transfer": 0},
    }  # fmt: skip
    params["studies"] = {
        f"{name}-tiny-reviews": {"study": name, "model": "tiny", "benchmark": "reviews", **run}
        for name, run in runs.items()
    }
    path.write_text(yaml.safe_dump(params))
    for name in runs:
        list_study(cell.root, name, "tiny", "reviews")  # adds the hashes of its inputs other than the cell
    return open_cell("tiny", "reviews", cell.root)


def most_probable(network, prompt):
    """The next byte after a prompt, as text."""
    tokenizer = tiny_tokenizer()
    with torch.no_grad():
        return tokenizer.decode([int(network(torch.tensor([tokenizer(prompt)["input_ids"]])).logits[0, -1].argmax())])


def write_free_answers(cell):
    """Questions with two accepted answers; the second is the output of the tiny model if that is text."""
    network = load(cell.model_dir).model
    rows = []
    for i in range(90):
        text = most_probable(network, f"{WORDS[i % 8]} {i} :")
        answers = ["zz", text] if text.isascii() and text.isalnum() and i % 3 else ["zz"]
        rows.append({"question": f"{WORDS[i % 8]} {i}", "answers": answers})
    (cell.root / "free.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """(cell, study -> its result)."""
    cell = write_project(tmp_path_factory.mktemp("project"))
    for step in [model, data, *STEPS]:
        step(cell)
    (cell.root / "words.txt").write_text("a good film , not a bad one .\n" * 60)
    write_free_answers(cell)
    cell = declare(cell, **{name: RUNS.get(name, {}) for name in STUDIES})
    found = {}
    for name in STUDIES:
        study(cell, name)
        found[name] = read_json(cell.study(name) / "result.json")
    return cell, found


def by_label(result):
    return {record["label"]: record for record in result["records"]}


def test_the_names_are_the_same_everywhere():
    assert tuple(CATALOGUE) == STUDIES


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_leaves_a_table_and_a_plot_and_no_journal(results, name):
    cell, found = results
    rows = table(found[name])
    assert len(rows) > 1
    assert {len(row) for row in rows} == {len(rows[0])}
    assert (cell.study(name) / "plot.svg").read_text().startswith("<svg")
    assert not list(cell.scratch.glob("study-*.jsonl"))
    assert found[name]["seconds"] >= 0


@pytest.mark.parametrize("name", ["selection", "projections", "attributions", "compare", "seeds"])
def test_what_is_the_cells_own_has_the_cells_own_accuracy(results, name):
    cell, found = results
    own = {
        "selection": "random examples",
        "projections": "gate_proj",
        "attributions": "integrated gradients, one layer (default)",
        "compare": "pruned",
        "seeds": "6 examples, seed 0",
    }[name]
    evaluation, records = read_json(cell.evaluation), by_label(found[name])
    assert records[own]["value"] == pytest.approx(evaluation["systems"]["pruned"]["accuracy"])
    assert records[own]["p"] == pytest.approx(evaluation["comparisons"]["pruned_vs_base"]["p"])
    base = records["base" if name == "compare" else "unpruned"]
    assert base["value"] == pytest.approx(evaluation["systems"]["base"]["accuracy"])
    assert base["n"] == evaluation["n"] == 30


def test_variants_on_the_test_rows_are_as_one_by_one(results):
    """All recipes in one pass over each pack give the same results as each alone."""
    cell, found = results
    for name in ("projections", "seeds"):
        context = StudyContext(cell, cell.settings.studies[f"{name}-tiny-reviews"])
        for label, variant in adapting.variants(context).items():
            recipe, _ = context.adapt(*variant)
            answers = context.answers(recipe)
            right, base = context.correct(answers), context.correct(context.base)
            record = by_label(found[name])[label]
            assert record["value"] == pytest.approx(right.mean())
            assert record["more"]["gained"] - record["more"]["lost"] == right.sum() - base.sum()
            exact = exact_matches(context.loaded.tokenizer, context.test, answers, 0)
            assert record["more"]["exact match"] == pytest.approx(exact.mean(), abs=1e-4)


def test_the_papers_criterion_on_other_rows_is_the_naive_choice(results):
    """From scratch: weights zeroed pair by pair, the ten rows of each draw, the paper's rule, the test rows."""
    cell, found = results
    context = StudyContext(cell, cell.settings.studies["choice-tiny-reviews"])
    pool, test = choosing.pool(context), context.test
    assert not set(pool.table["id"]) & set(context.samples.table["id"])
    fractions = context.settings.search.fractions
    pairs = [(layer, fraction) for layer in range(len(context.stack)) for fraction in fractions]
    on_pool, on_test = [], []
    for layer, fraction in pairs:
        neurons = [prominent_neurons(context.scores.ranked[layer], fraction)]
        for rows, kept in ((pool, on_pool), (test, on_test)):
            kept.append(answers_without(context.stack, rows.encoded, layer, neurons))
    base = context.correct(context.base)
    gains = []
    for seed in range(12):
        drawn = np.random.default_rng(seed).choice(20, 10, replace=False)
        gold = np.array(pool.gold)
        ranks = [
            ((answers.predicted()[0] == gold)[drawn].mean(), round(answers.margins(pool.gold)[0][drawn].mean(), 5))
            for answers in on_pool
        ]
        best = max(range(len(pairs)), key=lambda i: (*ranks[i], -pairs[i][1], -pairs[i][0]))
        gains.append(context.correct(on_test[best]).mean() - base.mean())
    record = by_label(found["choice"])["paper"]
    assert record["more"]["gain"] == pytest.approx(np.mean(gains), abs=1e-4)
    kept = load_file(cell.study("choice") / "arrays.safetensors")
    assert kept["test"].shape == (1 + len(pairs), 30, 2)
    assert kept["test_gold"].tolist() == test.gold
    assert (kept["test"].argmax(-1)[0] == context.base.predicted()[0]).all()
    assert (kept["test"].argmax(-1)[1:] == np.stack([answers.predicted()[0] for answers in on_test])).all()
    names = [f"{name}{how}" for name in CRITERIA for how in ("", ", abstaining")]
    assert list(by_label(found["choice"])) == ["unpruned", *names, "best pair on the test rows"]


def test_compare_has_every_system_with_what_it_was_given(results):
    cell, found = results
    records = by_label(found["compare"])
    assert list(records) == ["base", "pruned", *RUNS["compare"]["systems"]]
    assert {name: (r["more"]["examples"], r["more"]["labels"]) for name, r in records.items()} == {
        "base": (0, 0), "calibrated": (0, 0),
        **dict.fromkeys(("pruned", "random", "random_searched", "sft", "caa"), (6, 6)),
    }  # fmt: skip
    assert {name: r["more"]["settings chosen on"] for name, r in records.items()} == {
        **dict.fromkeys(("base", "calibrated", "sft"), ""),
        **dict.fromkeys(("pruned", "random", "random_searched", "caa"), "6 examples"),
    }
    assert all(record["more"]["peak GB"] > 0 for record in records.values())
    evaluation = read_json(cell.evaluation)["systems"]["random"]
    assert records["random"]["value"] == pytest.approx(evaluation["accuracy"])
    assert set(RUNS["compare"]["systems"]) < set(SYSTEMS)


def test_the_curve_over_fractions_passes_through_the_chosen_one(results):
    cell, found = results
    records = by_label(found["fractions"])
    chosen = [record for record in records.values() if record["more"].get("chosen")]
    assert len(chosen) == 1
    assert chosen[0]["x"] == read_json(cell.pruned)["fraction"]
    assert chosen[0]["value"] == pytest.approx(read_json(cell.evaluation)["systems"]["pruned"]["accuracy"])
    assert len(records) == 17


def test_free_answers_are_counted_like_evaluate_counts_them(results):
    cell, found = results
    records, systems = by_label(found["generation"]), read_json(cell.evaluation)["systems"]
    assert records["unpruned"]["value"] == pytest.approx(systems["base"]["exact_match"])
    own = records["chosen by option accuracy (the cell's)"]
    assert own["value"] == pytest.approx(systems["pruned"]["exact_match"])


def test_free_answers_are_matched_as_a_plain_model_writes_them(results):
    """Of the unpruned model, of the cell's recipe and of the one chosen by exact match, with weights zeroed."""
    cell, found = results
    records = by_label(found["generation"])
    context = StudyContext(cell, cell.settings.studies["generation-tiny-reviews"])
    test = context.test_of("free").table
    train = draw(context.rows_of("free")[0], context.stack, context.loaded.tokenizer, context.settings.adaptation)
    scores = score_rows(context.stack, context.loaded.tokenizer, train, context.settings.attribution)
    assert len(test) == 30

    def exact(table, layer=0, neurons=()):
        network = copy.deepcopy(context.loaded.model)
        gate_rows(network, layer)[list(neurons)] = 0
        told = [most_probable(network, prompt).lower() for prompt in table["prompt"]]
        return np.mean([any(answer.lower() == text for answer in answers if len(answer) == 1)
                        for text, answers in zip(told, table["options"], strict=True)])  # fmt: skip

    assert 0 < exact(test) < 1
    assert records["unpruned on free"]["value"] == pytest.approx(exact(test))
    own = records["chosen by option accuracy (the cell's) on free"]
    recipe = read_json(cell.pruned)
    assert own["value"] == pytest.approx(exact(test, recipe["layer"], recipe["neurons"]))
    chosen = records["chosen by exact match on free"]["more"]
    rates = {
        (layer, fraction): exact(train, layer, prominent_neurons(scores.ranked[layer], fraction))
        for layer in range(3) for fraction in context.settings.search.fractions
    }  # fmt: skip
    assert chosen["on the examples"] == pytest.approx(max(rates.values()), abs=1e-3)
    assert rates[chosen["layer"], chosen["fraction"]] == max(rates.values())
    neurons = prominent_neurons(scores.ranked[chosen["layer"]], chosen["fraction"])
    assert records["chosen by exact match on free"]["value"] == pytest.approx(exact(test, chosen["layer"], neurons))


def test_a_target_on_options_has_nothing_to_score_with_free_answers(results):
    cell, _ = results
    attribution = cell.settings.attribution.model_copy(update={"target": "option_margin"})
    settings = cell.settings.model_copy(update={"attribution": attribution})
    context = StudyContext(
        type(cell)(cell.root, cell.model, cell.benchmark, settings), settings.studies["generation-tiny-reviews"]
    )
    with pytest.raises(InputError, match=r"attribution\.target: option_margin needs options, and free has free"):
        generating.compute(context, "free")


def test_crossing_evaluates_each_choice_on_each_benchmark(results):
    cell, found = results
    records = by_label(found["cross_benchmark"])
    assert set(records) == {
        "unpruned on reviews", "unpruned on others", "reviews → reviews", "reviews → others", "others → others",
        "others → reviews",
    }  # fmt: skip
    own = records["reviews → reviews"]
    assert own["value"] == pytest.approx(read_json(cell.evaluation)["systems"]["pruned"]["accuracy"])
    assert own["more"]["gain"] == pytest.approx(own["value"] - records["unpruned on reviews"]["value"], abs=1e-3)


def test_transfer_tells_what_the_step_found(results):
    cell, found = results
    step, records = read_json(cell.transfer), by_label(found["transfer"])
    assert records["chosen on the examples"]["value"] == step["chosen"]["accuracy"]
    assert records["best on the test rows"]["value"] - records["chosen on the examples"]["value"] == pytest.approx(
        step["regret"]
    )


def test_calibration_prunes_by_every_set_and_tells_their_spread(results):
    records = by_label(results[1]["calibration"])
    sets = ("words", "own", "others")
    assert list(records) == [
        "unpruned", "DSM pruning, 6 examples, seed 0", "DSM pruning, 6 examples, seed 1", "magnitude, 50%, none",
        *(f"{method}, 50%, {name}" for method in ("wanda", "ria", "sparsegpt") for name in sets),
    ]  # fmt: skip
    for method in ("wanda", "ria", "sparsegpt"):
        values = [records[f"{method}, 50%, {name}"]["value"] for name in sets]
        spread = records[f"{method}, 50%, others"]["more"]["spread over sets"]
        assert spread == pytest.approx(max(values) - min(values), abs=1e-3)
    assert records["wanda, 50%, words"]["more"]["calibration set"] == "words, 2 × 512"
    for record in records.values():
        assert sum(map(int, record["more"]["answers"].split(":"))) == record["n"]
        assert np.isfinite(record["more"]["margin"])
    own, other = (records[f"DSM pruning, 6 examples, seed {seed}"] for seed in range(2))
    assert own["value"] == read_json(results[0].evaluation)["systems"]["pruned"]["accuracy"]
    assert other["more"]["spread over sets"] == pytest.approx(abs(own["value"] - other["value"]), abs=1e-3)


def test_chosen_calibration_sets_are_compared_with_random_draws_from_the_same_pool(results):
    cell, _ = results
    run = cell.settings.studies["calibration-tiny-reviews"]
    update = {"covering": True, "methods": ["magnitude", "wanda"], "sequences": 1, "benchmarks": []}
    context = StudyContext(cell, run.model_copy(update=update))
    parts = calibrating.parts(context)
    labels = [
        f"wanda, 50%, {name}, seed {seed}{how}"
        for name in ("words", "own") for seed in range(2) for how in ("", ", covering")
    ]  # fmt: skip
    records = calibrating.paired([record for part in parts for record in calibrating.compute(context, part)])
    assert [record.label for record in records][3:] == ["magnitude, 50%, none", *labels]
    values = {record.label: record.value for record in records}
    for name in ("words", "own"):
        pairs = [values[f"wanda, 50%, {name}, seed {s}, covering"] - values[f"wanda, 50%, {name}, seed {s}"]
                 for s in range(2)]  # fmt: skip
        told = records[[*values].index(f"wanda, 50%, {name}, seed 1, covering")].more["covering - random"]
        assert told == f"{np.mean(pairs):+.3f} ± {np.std(pairs, ddof=1) / 2**0.5:.3f}"
    assert sum("covering - random" in record.more for record in records) == 2
    texts = read_texts(cell.root / "words.txt")
    pool = from_texts(context.loaded.tokenizer, texts, name="words", count=4, length=512, seed=1)
    chosen = pool.sequences[facility_location(input_norms(context.loaded, pool.sequences), 1)[0]]
    for sequence, how in ((pool.sequences[0], ""), (chosen, ", covering")):
        with sparse(context.loaded, [sequence], "wanda", 0.5):
            right = context.correct(answers_unedited(context.stack, context.test.encoded))
        assert values[f"wanda, 50%, words, seed 1{how}"] == right.mean()
        assert context.calibrations[f"words|1{how.replace(', ', '|')}"].sequences == [sequence]


def test_the_bridge_spares_neurons_and_prunes_on_top(results):
    cell, found = results
    records = by_label(found["bridge"])
    assert list(records) == [
        "unpruned", "DSM pruning", "Wanda 50%", "Wanda 50%, sparing NSA's neurons", "Wanda 50%, sparing random neurons",
        "Wanda 50%, then DSM pruning's neurons", "Wanda 50%, then DSM pruning anew",
    ]  # fmt: skip
    own = read_json(cell.evaluation)["systems"]["pruned"]["accuracy"]
    assert records["DSM pruning"]["value"] == pytest.approx(own)
    removed = {label: record["more"].get("weights removed") for label, record in records.items()}
    assert removed["Wanda 50%"] == removed["Wanda 50%, then DSM pruning anew"] == "50.0%"
    assert removed["Wanda 50%, sparing NSA's neurons"] == removed["Wanda 50%, sparing random neurons"] < "50.0%"
    chosen = read_json(cell.pruned)
    assert records["Wanda 50%, then DSM pruning's neurons"]["more"]["layer"] == chosen["layer"]


def test_the_neurons_that_are_linked_answer_to_influential_words(results):
    cell, _ = results
    context = StudyContext(cell, cell.settings.studies["bridge-tiny-reviews"])
    neurons = linked(context)
    assert [len(set(neurons[layer])) for layer in range(len(context.stack))] == [5, 5, 5]  # a tenth of 48
    own = own_words(context.samples, context.loaded.tokenizer)
    found = influential_words(context.loaded, context.stack, context.samples.encoded, own, 50)
    weights = {}
    for example in found:
        for word, share in zip(example.words, example.shares, strict=True):
            weights[word] = weights.get(word, 0) + abs(share)
    hidden = {}

    def keep(module, inputs):
        hidden["h"] = inputs[0][0].abs()

    sums = {word: [0.0, 0] for word in {one.word for row in own for one in row.occurrences}}
    with torch.no_grad():
        handle = context.loaded.model.model.layers[1].mlp.down_proj.register_forward_pre_hook(keep)
        for row, words in zip(context.samples.encoded, own, strict=True):
            context.loaded.model(torch.tensor([row.prompt]))
            for one in words.occurrences:
                entry = sums[one.word]
                sums[one.word] = [entry[0] + hidden["h"][one.tokens[-1]], entry[1] + 1]
        handle.remove()
    means = {word: total / count for word, (total, count) in sums.items()}
    weighted = sum(means[word] * weight for word, weight in weights.items())
    link = weighted / torch.stack(list(means.values())).mean(0)
    assert set(neurons[1]) == set(link.topk(5).indices.tolist())


def naive_neurons(context, rows, indices, words):
    """The ten neurons of each word with the highest share, over all layers, from hooks on the whole model."""
    network, width = context.loaded.model, context.stack.d_ff
    own = own_words(rows, context.loaded.tokenizer)
    sums = {word: (np.zeros(width * len(context.stack)), 0) for word in words}
    with torch.no_grad():
        for index in indices:
            seen = []
            handles = [
                layer.mlp.down_proj.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0][0].abs()))
                for layer in network.model.layers
            ]
            network(torch.tensor([rows.encoded[index].prompt]))
            for handle in handles:
                handle.remove()
            for one in own[index].occurrences:
                if one.word in sums:
                    total, count = sums[one.word]
                    sums[one.word] = total + torch.cat([h[one.tokens[-1]] for h in seen]).numpy(), count + 1
    means = {word: total / count for word, (total, count) in sums.items()}
    whole = sum(means.values())
    return {word: set(np.argsort(-mean / whole, kind="stable")[:10].tolist()) for word, mean in means.items()}


def test_the_neurons_of_words_on_two_benchmarks_are_those_of_hooks(results):
    cell, found = results
    records = by_label(found["word_neurons"])
    assert list(records) == ["reviews, halves of its rows", "others, halves of its rows", "reviews and others"]
    context = StudyContext(cell, cell.settings.studies["word_neurons-tiny-reviews"])
    other = context.test_of("others")
    one, two = (naive_neurons(context, rows, range(30), WORDS) for rows in (context.test, other))
    shared = [len(one[word] & two[word]) / 10 for word in WORDS]
    record = records["reviews and others"]
    assert record["value"] == pytest.approx(np.mean(shared), abs=1e-9)
    assert record["stderr"] == pytest.approx(np.std(shared, ddof=1) / len(WORDS) ** 0.5, abs=1e-9)
    assert record["more"]["words"] == len(WORDS)
    assert record["more"]["rows"] == "30, 30"
    assert 0 < record["more"]["p (permutation)"] <= 1
    assert record["more"]["other words"] < record["value"]
    assert -1 <= record["more"]["Spearman"] <= 1
    first, second = halves(30, 0)
    words = [word for word in WORDS if all(counted(context, half)[word] >= 3 for half in (first, second))]
    one, two = (naive_neurons(context, context.test, half, words) for half in (first, second))
    own = records["reviews, halves of its rows"]
    assert own["more"]["words"] == len(words) >= 3
    assert own["value"] == pytest.approx(np.mean([len(one[word] & two[word]) / 10 for word in words]), abs=1e-9)


def counted(context, indices):
    return Counter(word for i in indices for word in context.test.table["prompt"].iloc[i].split())


def test_too_few_common_words_are_a_note_not_a_number(results):
    cell, _ = results
    run = cell.settings.studies["word_neurons-tiny-reviews"].model_copy(update={"test": 2})
    [record] = word_neurons.compute(StudyContext(cell, run), "reviews|others")
    assert record.value is None
    assert record.more["note"] == "fewer than 3 words occur 3 times on both sides"
    assert plot({"study": "word_neurons", "unit": "overlap", "records": [record.as_json()]}, x="").startswith("<svg")


def test_the_seeds_of_a_size_are_averaged(results):
    records = by_label(results[1]["seeds"])
    values = [records[f"4 examples, seed {seed}"]["value"] for seed in range(2)]
    mean = records["4 examples, mean of 2 seeds"]
    assert mean["value"] == pytest.approx(np.mean(values))
    assert mean["more"]["deviation between seeds"] == pytest.approx(np.std(values, ddof=1), abs=1e-4)


@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_several_layers_are_silenced_in_the_weights_and_come_back(family):
    given, test = fit_data(family)
    network = given.loaded.model
    before = state(network)
    choices = [Neurons(layer, [1, 5, 7]) for layer in (0, 2)]
    expected = copy.deepcopy(network)
    for choice in choices:
        gate_rows(expected, choice.layer)[choice.neurons] = 0
    with silenced(given.stack, *choices):
        for row in test.encoded[:3]:
            assert naive(network, row) == pytest.approx(naive(expected, row), abs=1e-5)
    assert_untouched(network, before)


def test_the_recipes_of_all_draws_are_kept(results):
    cell, found = results
    context = StudyContext(cell, cell.settings.studies[f"seeds-{cell.name}"])
    draws = [record for record in found["seeds"]["records"] if "seed " in record["label"]]
    assert len(draws) == 4
    for record in draws:
        name = record["label"].replace(", ", "-").replace(" ", "-")
        recipe = read_recipe(cell.study("seeds") / "recipes" / f"{name}.json")
        assert (recipe.layer, recipe.fraction) == (record["more"]["layer"], record["more"]["fraction"])
        assert context.correct(context.answers(recipe)).mean() == record["value"]


def test_a_killed_study_goes_on_where_it_stopped(results, tmp_path, monkeypatch):
    cell, found = results
    asked = []
    adapt = StudyContext.adapt

    def stop_at_the_third(self, *arguments, **more):
        asked.append(arguments)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return adapt(self, *arguments, **more)

    monkeypatch.setattr(StudyContext, "adapt", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        study(cell, "seeds")
    assert by_label(read_json(cell.study("seeds") / "result.json")) == by_label(found["seeds"]), "half written"
    study(cell, "seeds")
    assert len(asked) == 5, "finished parts were computed again"
    again = read_json(cell.study("seeds") / "result.json")
    assert [r["value"] for r in again["records"]] == [r["value"] for r in found["seeds"]["records"]]


def test_a_killed_adaptation_of_a_study_goes_on_at_its_layer(results, monkeypatch):
    cell, _ = results
    context = StudyContext(cell, cell.settings.studies[f"seeds-{cell.name}"])
    wanted = adapting.with_changes(context.settings.adaptation, seed=9)
    expected, _ = context.adapt(wanted)
    computed = []
    one, together = Attributor.compute, Grid.compute_together

    def compute(self, part):
        if len(computed) == 1:
            raise KeyboardInterrupt
        computed.append(part)
        return one(self, part)

    monkeypatch.setattr(Attributor, "compute", compute)
    with pytest.raises(KeyboardInterrupt):
        context.adapt(wanted)
    assert list(cell.scratch.glob("study-seeds-*-0.jsonl"))
    monkeypatch.setattr(Attributor, "compute", lambda self, part: computed.append(part) or one(self, part))

    def stop(self, parts):
        raise KeyboardInterrupt

    monkeypatch.setattr(Grid, "compute_together", stop)
    with pytest.raises(KeyboardInterrupt):
        context.adapt(wanted)
    assert len(computed) == len(set(map(str, computed))) == len(context.stack), "a layer was computed again"
    monkeypatch.setattr(Grid, "compute_together", together)
    assert context.adapt(wanted)[0] == expected
    assert len(computed) == len(context.stack)
    assert not list(cell.scratch.glob("study-seeds-*.jsonl"))


def test_a_study_that_is_not_declared_or_cannot_be_is_refused(results):
    cell, _ = results
    bare = type(cell)(cell.root, cell.model, cell.benchmark, cell.settings.model_copy(update={"studies": {}}))
    with pytest.raises(InputError, match=r"studies: .timing-tiny-reviews. is not in params\.yaml"):
        study(bare, "timing")


@pytest.mark.parametrize(
    ("run", "told"),
    [
        ({"study": "seeds", "benchmarks": ["others"]}, "benchmarks: the study seeds does not use it"),
        ({"study": "seeds", "covering": True}, "covering: the study seeds does not use it"),
        (
            {"study": "calibration", "covering": True, "methods": ["magnitude"]},
            "covering: magnitude pruning has no calibration set",
        ),
        (
            {"study": "domains"},
            "study: domains is now cross_benchmark; write study: cross_benchmark, in",
        ),
        ({"study": "cross_benchmark"}, "benchmarks: the study cross_benchmark needs some besides reviews"),
        ({"study": "word_neurons"}, "benchmarks: the study word_neurons needs some besides reviews"),
        ({"study": "cross_benchmark", "benchmarks": ["nowhere"]}, "'nowhere' is not declared under benchmarks"),
        ({"study": "compare", "systems": ["magic"]}, "systems"),
        ({"study": "compare", "model": "other"}, "must be named 'compare-other-reviews'"),
    ],
)
def test_a_wrong_line_is_refused_by_name(results, tmp_path, run, told):
    params = yaml.safe_load((results[0].root / "params.yaml").read_text())
    params["studies"] = {f"{run['study']}-tiny-reviews": {"model": "tiny", "benchmark": "reviews"} | run}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    with pytest.raises(InputError, match=told):
        open_cell(root=tmp_path)


def test_a_protocol_that_chooses_on_test_rows_says_so_in_its_settings(results):
    cell, _ = results
    published = declare(cell, compare={"systems": ["caa"], "protocol": "published"})
    study(published, "compare")
    result = read_json(cell.study("compare") / "result.json")
    assert result["settings"]["protocol"] == "published"
    found = {label: record["more"]["settings chosen on"] for label, record in by_label(result).items()}
    assert found == {"base": "", "pruned": "6 examples", "caa": "30 test rows"}


def test_the_page_has_every_result_and_only_readings_of_that_result(results, tmp_path):
    cell, found = results
    page = tmp_path / "docs" / "studies.md"
    page.parent.mkdir()
    key, of = "seeds-tiny-reviews", fingerprint(found["seeds"])
    texts = {key: {"of": of, "text": "Seeds differ."}, "layers-tiny-reviews": {"of": "00000000", "text": "Old."}}
    (page.parent / "readings.yaml").write_text(yaml.safe_dump(texts))
    assert write_page(cell.root, cell.settings, page) == len(STUDIES)
    text = page.read_text()
    assert "Seeds differ." in text
    assert "Old." not in text
    assert "*Published* (2507.09185" in text
    adapted = found["seeds"]["adapted with"]
    assert adapted["fractions"] == cell.settings.search.fractions
    assert f"fractions: {adapted['fractions']}" in text
    for name in STUDIES:
        assert f"(studies/{name}-tiny-reviews.svg)" in text
        assert (page.parent / "studies" / f"{name}-tiny-reviews.svg").exists()
    bare = cell.settings.model_copy(update={"studies": {}})
    with pytest.raises(InputError, match="none has a result yet"):
        write_page(cell.root, bare, page)


def test_results_of_a_page_are_not_lost_by_writing_it_elsewhere(results, tmp_path):
    """A clone does not have the results from which the page was made."""
    cell, _ = results
    page = tmp_path / "docs" / "studies.md"
    write_page(cell.root, cell.settings, page)
    before = page.read_bytes()
    runs = {key: run for key, run in cell.settings.studies.items() if run.study == "layers"}
    fewer = cell.settings.model_copy(update={"studies": runs})
    told = f"studies.md: has {len(STUDIES) - 1} results that are not here, such as Attributions of tiny on reviews: "
    with pytest.raises(InputError, match=told):
        write_page(cell.root, fewer, page)
    assert page.read_bytes() == before
    other = tmp_path / "elsewhere" / "layers.md"
    assert write_page(cell.root, fewer, other) == 1
    assert [path.name for path in (tmp_path / "elsewhere" / "layers").iterdir()] == ["layers-tiny-reviews.svg"]
    page.unlink()
    assert write_page(cell.root, fewer, page) == 1


def test_interactions_are_of_the_most_prominent_pruned_neurons(results):
    cell, found = results
    context = StudyContext(cell, cell.settings.studies["interactions-tiny-reviews"])
    recipe, scores = context.recipe, context.scores.ranked[context.recipe.layer]
    top = sorted(scores[recipe.neurons].tolist(), reverse=True)[:10]
    pruned, at_random = found["interactions"]["records"]
    assert pruned["label"] == f"{len(top)} most prominent pruned neurons"
    assert pruned["more"]["scores"] == pytest.approx(sum(top), abs=2e-2 * abs(sum(top)) + 1e-4)
    assert 0 < pruned["value"] <= 1
    assert 0 < at_random["value"] <= 1
