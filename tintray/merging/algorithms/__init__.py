"""The merging methods, a module for each family; see ``merging.declaration``."""
