"""The fit: coordinator, workers, shards, and what they agree on."""
