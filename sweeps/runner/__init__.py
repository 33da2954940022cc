"""Running trials; the only importers of ray."""
