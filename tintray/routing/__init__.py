"""Which task an example is of, told by its inputs alone: statistics of pools, without training."""
