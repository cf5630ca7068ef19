"""Measures the memory and the time of a run: budgets, live bytes, traces."""
