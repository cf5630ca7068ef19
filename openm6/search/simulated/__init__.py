"""Simulations for development: simulated customers and photos, for shops that have no log of clicks yet."""
