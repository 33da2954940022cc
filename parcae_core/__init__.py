"""The Parcae model, its data, and the training of one run. Knows nothing of sweeps or fits."""
