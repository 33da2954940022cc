"""Where rows come from: sources, columns, units, and the records that sweeps write."""
