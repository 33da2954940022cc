"""Which runs to make: pools of candidates, forecasts of intervals, the next trials of a sweep."""
