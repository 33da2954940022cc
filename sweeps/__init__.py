"""Many runs: spec, plan, Ray Tune, store, Weights & Biases mirror."""
