"""From records to laws: fits, figures, reports. Needs no GPU and no torch."""
