"""Faults at random instants, in all that a job needs: it ends by itself, to the same bytes."""
