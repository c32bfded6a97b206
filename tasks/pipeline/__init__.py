"""Settings (params.yaml), cells and their files, and the entry point of all steps."""
