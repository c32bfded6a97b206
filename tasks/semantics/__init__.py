"""Neuron semantic attribution (arXiv 2503.01542): which words neurons respond to, and which words pruning silences."""
