"""What every step shares: settings, cell paths, atomic files, journals, progress, the entry point."""
