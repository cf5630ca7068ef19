"""The model: config, layers, the stream, M6."""

from openm6.model.config import ModelConfig
from openm6.model.layers import Block
from openm6.model.m6 import M6
from openm6.model.stream import Stream

__all__ = ["M6", "Block", "ModelConfig", "Stream"]
