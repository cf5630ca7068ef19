"""Turning a model into answers: the key-value cache, sampling, beam search, the pipeline."""
