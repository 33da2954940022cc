"""Figures, one file a family; each is written as PNG, PDF and the CSV of what it draws."""
