"""Everything that follows from a source, on one HTML page."""
