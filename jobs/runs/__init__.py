"""What a job does from its file to its published merge."""
