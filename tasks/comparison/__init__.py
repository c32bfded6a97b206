"""Systems that DSM pruning is compared with: pruning at random, prior correction, fine-tuning, steering."""
