"""How much of its experts a merge keeps, beside rivals that had the same chances."""
