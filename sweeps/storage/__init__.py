"""Where a sweep's bytes live: a folder or an object store."""
