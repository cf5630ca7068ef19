"""What updates one part at a time: AdamW, Adafactor, and how their state is cut into blocks."""
