"""The method of 2507.09185: scores of neurons, the grid over (layer, fraction), and the recipe of the pruned model.

`algorithm` has Algorithm 1 on one screen. For a model in memory:

>>> from tasks.method import adapt, silenced
>>> found = adapt(model, tokenizer, examples)  # rows with prompt, options and gold
>>> with silenced(model, found.recipe):
...     model.generate(**inputs)
"""

from tasks.method.algorithm import Adapted, adapt
from tasks.method.silence import silence, silenced
from tasks.pipeline.settings import Attribution, Search

__all__ = ["Adapted", "Attribution", "Search", "adapt", "silence", "silenced"]
