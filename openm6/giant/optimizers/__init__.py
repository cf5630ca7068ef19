"""Optimizers that update one part at a time: AdamW, Muon and Adafactor, and state cut into blocks."""
