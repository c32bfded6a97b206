"""Benchmarks: rows, prompts, options, and how a model answers them."""
