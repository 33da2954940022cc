"""From a YAML spec to planned trials; pure."""
