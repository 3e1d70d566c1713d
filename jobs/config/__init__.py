"""The job file: its sections and fields, where values come from, and its one-sentence errors."""
