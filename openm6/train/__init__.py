"""Training: recipes, batches, the loop, checkpoints, metrics, the report."""
