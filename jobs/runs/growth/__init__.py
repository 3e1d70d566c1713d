"""A merge that grows: tasks are added, refreshed and removed without doing the rest again."""
