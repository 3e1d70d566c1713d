"""tintray: many fine-tuned models, one backbone, one small layer per task."""
