"""Where results live: an artifact store (a folder, or S3-compatible) and a SQL catalog."""
