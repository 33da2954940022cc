"""Measurements. Each prints, and appends rows to benchmarks/results/."""
