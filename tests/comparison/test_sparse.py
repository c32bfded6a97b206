"""Weight pruning as a system: inside the context the weights are those of the method, outside they are unchanged."""

import pytest

from tasks.comparison.sparse import SPARSITY, weights_pruned
from tasks.models.loading import Loaded
from tasks.sparsity.weight_pruning import METHODS, prune_weights
from tests.comparison.fit_data import assert_untouched, fit_data, state
from tests.method.test_grid import naive


@pytest.mark.parametrize("method", METHODS)
def test_it_answers_like_the_pruned_model_and_leaves_nothing_behind(method):
    given, test = fit_data()
    before = state(given.loaded.model)
    fitted = weights_pruned(method)(given)
    with fitted.applied() as answer:
        answers = answer(test.encoded)
    assert_untouched(given.loaded.model, before)
    assert (fitted.examples, fitted.labels) == (0 if method == "magnitude" else 6, 0)

    other, _ = fit_data()
    prompts = [row.prompt for row in other.examples.encoded]
    report = prune_weights(Loaded(other.loaded.model, None), prompts, method, SPARSITY)
    assert report.sparsity == pytest.approx(SPARSITY, abs=0.01)
    for row, found in zip(test.encoded, answers.logprobs, strict=True):
        assert found[0] == pytest.approx(naive(other.loaded.model, row), abs=1e-4)
