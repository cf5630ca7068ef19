"""Pseudo-to-Real: the map from layers to slots, and the time to delink."""
