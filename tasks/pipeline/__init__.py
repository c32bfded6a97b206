"""What all steps share: settings, paths of a cell, the entry point."""
