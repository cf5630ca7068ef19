"""Turns a model's output into answers: the key-value cache, sampling, beam search, the pipeline."""
