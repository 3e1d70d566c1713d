"""Tint layers: sites, the fused step, self-labels and their confidence."""
