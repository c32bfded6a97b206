"""Settings (params.yaml), cells and their files, and the entry point that every step shares."""
