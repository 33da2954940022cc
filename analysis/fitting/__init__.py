"""One fitter for every parametric law: search, intervals, results."""
