"""The streamed engine: it decides the order of computation and the place of all data, and runs the steps."""
