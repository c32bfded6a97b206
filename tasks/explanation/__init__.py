"""What pruning changed: tokens of the input, the pruned neurons, confidence, and the option prior. No orchestration."""
