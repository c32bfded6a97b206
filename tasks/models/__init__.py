"""Models: loading, the view of their decoder stack, and runs that start at any layer."""
