"""Turning a model into answers: the key-value cache, sampling, beam search, and the pipeline that users hold."""
