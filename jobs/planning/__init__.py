"""What a job needs and takes, known before it starts."""
