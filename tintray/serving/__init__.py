"""Answering: one backbone in memory, and batches in which every example may be of another task."""
