"""The method of 2507.09185: scores of neurons, the grid over (layer, fraction), and the recipe of the pruned model.

`algorithm` has Algorithm 1 on one screen. For a model in memory:

>>> from tasks.method.algorithm import adapt
>>> from tasks.method.silence import silenced
>>> adapted = adapt(model, tokenizer, examples)  # rows with prompt, options and gold
>>> with silenced(model, adapted.recipe):
...     model.generate(**inputs)
"""
