"""What verbs print of a plan and of a sweep, as plain data and as tables."""
