"""Models as named tensors: loaded whole and checked, split into backbone, head and tint sites."""
