"""Utilities of all steps: files, journals, worker pools, progress, errors."""
