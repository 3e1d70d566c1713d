"""Merge whole checkpoints on disk, tensor by tensor, within a bound on memory."""
