"""The steps from one version of the catalog's tables to the next, oldest first."""

REVISIONS = ("0001", "0002", "0003", "0004", "0005")
"""All versions that this code knows; the last one is the version that it makes."""

USABLE = ("0003", "0004", "0005")
"""Those that it works with: what came after the first of them makes it quicker, or is of checks."""
