"""Looking at merges: the report, which tasks fight."""
