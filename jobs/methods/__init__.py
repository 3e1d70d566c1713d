"""Merging methods over a fleet, and the statistics they measure."""
