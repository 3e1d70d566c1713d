"""Task vectors, their formats and coefficients, and the correction that all tasks share."""
