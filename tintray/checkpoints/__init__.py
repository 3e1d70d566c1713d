"""Models on disk: which files of a folder are the model, and what may be read of them."""
