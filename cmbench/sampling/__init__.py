"""Per-sample seeds and shards of sample indices."""
