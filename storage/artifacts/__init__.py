"""The artifact store: bytes by name, in a folder or an S3-compatible bucket."""
