"""Training over several processes: slices of slots, collectives; data, expert and sharded parallelism."""
