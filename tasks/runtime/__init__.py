"""What every step needs to run: files, journals, workers, progress, errors."""
