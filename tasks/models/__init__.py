"""Models: loading, the view of their decoder stack, and runs that start from any layer."""
