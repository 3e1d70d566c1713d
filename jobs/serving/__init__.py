"""A merge behind HTTP: replicas on Ray Serve, batches of mixed tasks, versions taken up running."""
