"""Pseudo-to-Real: layer -> slot, and when to delink."""
