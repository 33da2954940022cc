"""The training of one run: steps, optimiser, depth, evaluation."""
