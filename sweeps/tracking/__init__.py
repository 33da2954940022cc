"""The Weights & Biases mirror; the only importers of wandb."""
