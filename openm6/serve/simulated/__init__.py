"""Simulated data for development. Nothing here runs in the service."""
