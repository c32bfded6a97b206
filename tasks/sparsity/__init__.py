"""Weight pruning, one-shot and layer by layer: magnitude, Wanda, RIA, SparseGPT; recipes, calibration, perplexity."""
