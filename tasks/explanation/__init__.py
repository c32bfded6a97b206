"""What pruning changed: attributions of input tokens, the pruned neurons, confidence, and the option prior."""
