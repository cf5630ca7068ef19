"""Simulated data for development: nothing here runs in the service."""
