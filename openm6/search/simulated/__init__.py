"""Simulations for development: made-up customers and made-up photos, for shops that have no log of clicks yet."""
