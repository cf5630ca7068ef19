"""The streamed engine: which part computes when, where what it needs lives, and what a step does with it."""
