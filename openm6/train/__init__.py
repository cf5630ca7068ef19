"""Training: recipes, batches, the loop, checkpoints, metrics and the report."""
