"""Who is told of a job while it runs: trackers of experiments, and Ray's metrics."""
