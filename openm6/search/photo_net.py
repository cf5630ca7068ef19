"""The name under which version 0.1 documented `LearnedEncoder`; it lives in `openm6.search.learned.encoder`."""

from openm6.search.learned.encoder import LearnedEncoder

__all__ = ["LearnedEncoder"]
