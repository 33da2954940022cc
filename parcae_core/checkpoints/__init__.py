"""Checkpoints of ours and of the published format, and the models in them."""
