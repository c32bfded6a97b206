"""Benchmarks: rows, prompts, options, and the log-probabilities of the options."""
