"""Keeps the import path of `LearnedEncoder` from version 0.1; it lives in `openm6.search.learned.encoder`."""

from openm6.search.learned.encoder import LearnedEncoder

__all__ = ["LearnedEncoder"]
