"""What a run takes: budgets, live bytes, traces."""
