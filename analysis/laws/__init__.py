"""The laws: their formulas, parameters, bounds and starts."""
