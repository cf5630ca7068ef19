"""The same over several processes: pieces of slots, collectives, data, expert and sharded parallelism."""
