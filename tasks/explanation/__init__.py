"""Explanations of the effect of pruning: input attributions, the pruned neurons, confidence, and the option prior."""
