"""Pruning: which neurons a (layer, fraction) silences, the grid over both, and the recipe that is the pruned model."""
