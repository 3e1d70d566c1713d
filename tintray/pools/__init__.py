"""Pools: unlabelled examples as a model takes them."""
