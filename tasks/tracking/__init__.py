"""MLflow: runs, the model registry, promotion, serving; and export of pruned models."""
