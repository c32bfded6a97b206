"""Neuron semantic attribution (arXiv 2503.01542): which words neurons answer to, and which of them pruning silences."""
