"""The catalog: what is known of jobs, merges and artifacts, in SQL."""
