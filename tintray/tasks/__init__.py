"""Kinds of task: losses, agreement, metrics, and what may be doubted of them."""
