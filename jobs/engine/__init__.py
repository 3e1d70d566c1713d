"""What computes a job: backends, workers, shards, the coordinator, and their sizes."""
