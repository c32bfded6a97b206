"""One-shot weight pruning: magnitude, Wanda, RIA, SparseGPT; recipes, calibration sets, perplexity."""
