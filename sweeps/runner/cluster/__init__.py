"""The Ray cluster that a sweep runs on: starting or reaching it, what fits there, submitting to it."""
