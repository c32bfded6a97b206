"""Neuron semantic attribution (arXiv 2503.01542): the words of each neuron, and the effect of pruning on them."""
