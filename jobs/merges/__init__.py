"""Published merges: how one comes to be, is found, measured and compared."""
