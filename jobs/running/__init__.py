"""One job while it runs: its stages, its lease, how it stops."""
