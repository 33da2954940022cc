"""Scores of trained models on tasks; the only importer of lm_eval."""
