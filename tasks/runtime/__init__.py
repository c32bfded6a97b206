"""What every step needs to run: files, journals, worker pools, progress, errors."""
