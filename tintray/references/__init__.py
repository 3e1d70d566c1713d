"""Whether a task's new examples are like those that its merge was measured on."""
