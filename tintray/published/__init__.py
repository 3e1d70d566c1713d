"""A published merge: its manifest, its model, its card, its exports."""
